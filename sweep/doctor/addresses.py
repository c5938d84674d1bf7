"""The addresses that a study would use, asked whether they answer: no token is sent, and nothing is fetched."""

import os
from collections.abc import Iterator

from pipelines.errors import UserError
from pipelines.storage import check_store, is_local
from sweep.doctor.findings import Finding
from sweep.doctor.needs import is_on_hub
from sweep.index.address import mask
from sweep.study.experiment import Experiment
from sweep.study.generators import EndpointGenerator

TIMEOUT_S = 10.0
HUB = "https://huggingface.co"


def look_at_network(experiment: Experiment | None, store: str, tracking_uri: str | None) -> Iterator[Finding]:
    """Ask the store (a small object is written and removed), MLflow's server, and of a study the hub and its endpoint."""
    if not is_local(store):
        try:
            check_store(store)
            yield Finding("store", "ok", f"{store} can be written, read and listed")
        except UserError as error:
            found, _, way_out = str(error).partition("; ")
            yield Finding("store", "fault", found, way_out or "see docs/stores.md")
    if tracking_uri and tracking_uri.startswith(("http://", "https://")):
        yield _answers("MLflow", tracking_uri, "start it, give another --tracking-uri, or leave it out")
    if experiment is None:
        return
    if is_on_hub(experiment):
        address = os.environ.get("HF_ENDPOINT") or HUB
        yield _answers("hub", address, "set HF_ENDPOINT to a mirror, HTTPS_PROXY, or fetch the weights elsewhere")
    if isinstance(experiment.generator, EndpointGenerator):
        yield _answers("endpoint", experiment.generator.endpoint.url, "see that its url is right and it is started")


def _answers(what: str, address: str, way_out: str) -> Finding:
    """Whether anything answers there; what it answers to a question without a token is no matter."""
    import httpx

    shown = mask(address, address)
    try:
        answer = httpx.get(address, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = " ".join(mask(str(error), address).split()) or type(error).__name__
        return Finding(what, "fault", f"{shown} does not answer ({why})", way_out)
    if answer.status_code >= 500:
        return Finding(what, "warning", f"{shown} answers with {answer.status_code}", "try again later, or see its log")
    return Finding(what, "ok", f"{shown} answers")
