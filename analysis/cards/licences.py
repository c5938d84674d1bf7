"""What is known of the licences of base models and data, and what they ask of whoever passes on what was made from them.

Only what its publisher says is here; what is not here is unknown, and is said to be.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError

UNKNOWN = "unknown"
HUB_LICENCES = (
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "openrail", "bigscience-openrail-m"),
    *("cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0"),
    *("cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0"),
    *("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "odbl", "odc-by"),
    *("pddl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "epl-2.0", "eupl-1.1"),
    *("afl-3.0", "artistic-2.0", "ecl-2.0", "wtfpl", "zlib", "gfdl", "c-uda", "etalab-2.0"),
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "bigcode-openrail-m", UNKNOWN, "other"),
)
"""Identifiers that the hub takes in a card's `license`."""


@dataclass(frozen=True)
class Licence:
    """A licence: `hub_id` is the hub's name for it, `terms` what it asks of whoever passes the work, or what is made of it, on.

    `restricts` says that passing on is bound by more than a notice; None where that is not known. With `binds_models`, a model
    made from a model under it is under it as well.
    """

    hub_id: str
    name: str
    terms: str = ""
    restricts: bool | None = None
    binds_models: bool = False


UNKNOWN_LICENCE = Licence(UNKNOWN, "unknown")
LLAMA_2 = Licence(
    "llama2",
    "Llama 2 Community License",
    "The weights and models made from them may be passed on only with a copy of the agreement and its notice ('Llama 2 is "
    "licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.'), under its "
    "acceptable use policy; and neither the model nor what it writes may be used to improve another large language model",
    restricts=True,
    binds_models=True,
)
GEMMA = Licence(
    "gemma",
    "Gemma Terms of Use",
    "The weights and models made from them, which includes models trained on what Gemma writes so as to perform like it, "
    "may be passed on only under the same use restrictions, with a copy of the terms",
    restricts=True,
    binds_models=True,
)
OF_BASE_MODELS: Mapping[str, Licence] = {
    "meta-llama/Llama-2-": LLAMA_2,
    **{f"google/gemma-{generation}": GEMMA for generation in ("2b", "7b", "1.1-", "2-", "3-")},
}
"""Beginning of a repository's name → its licence, where all repositories of that name have it."""


@dataclass(frozen=True)
class Source:
    """Data that a study takes from outside. `hub_name` is the hub's dataset, "" if there is none or it is not known.

    Of what only `is_test`, nothing is made.
    """

    name: str
    licence: Licence
    hub_name: str = ""
    where: str = ""
    is_test: bool = False


MULTINLI = Source(
    "MultiNLI 1.0",
    Licence(
        "other",
        "mixed: OANC, CC BY 3.0, CC BY-SA 3.0, public domain, by genre",
        "Most of it is under the OANC's licence, which lets it be used, modified and shared freely; in the fiction genre are "
        "works under CC BY-SA 3.0 and CC BY 3.0 and works in the public domain, so that no one licence covers all of it, and "
        "what holds its sentences is passed on under theirs",
        restricts=True,
    ),
    "nyu-mll/multi_nli",
    "https://cims.nyu.edu/~sbowman/multinli/",
)
HANS = Source(
    "HANS", Licence("mit", "MIT", restricts=False), "jhu-cogsci/hans", "https://github.com/tommccoy1/hans", is_test=True
)
TEMPLATE_CORPUS = Source(
    "the project's template corpus",
    Licence(UNKNOWN, "none: sentences filled in by rules of this project's, whose code is Apache-2.0"),
)
LANGUAGES = {"NLISourcesConfig": "en", "TemplateCorpusConfig": "en"}
"""Type of a study's sources → the language of their texts; of one's own data it is not known."""


def licence_of_base(repository: str, given: str = "") -> Licence:
    """The licence of a base model on the hub, or what the user says (`given`, the hub's identifier), or the unknown one.

    Raises UserError for an identifier that the hub does not have.
    """
    if given:
        return given_licence(given, "--base-license")
    return next((licence for name, licence in OF_BASE_MODELS.items() if repository.startswith(name)), UNKNOWN_LICENCE)


def given_licence(hub_id: str, option: str) -> Licence:
    """The licence that a user names by the hub's identifier. Raises UserError for what is none, with the nearest ones."""
    if hub_id not in HUB_LICENCES:
        near = ", ".join(difflib.get_close_matches(hub_id.lower(), HUB_LICENCES, n=3, cutoff=0.4) or ("apache-2.0", "mit"))
        raise UserError(f"{option} {hub_id}: the hub has no such identifier; near: {near}; give other for one it does not know")
    known = (licence for licence in (LLAMA_2, GEMMA) if licence.hub_id == hub_id)
    return next(known, Licence(hub_id, hub_id))


def sources_of(config: Mapping[str, Any], metrics: Mapping[str, Any], given: str = "") -> tuple[Source, ...]:
    """The sources that prepared data was made of, from their record's config and metrics; training data first.

    `given` is the hub's identifier of the licence that the user's own data has, unknown without it.
    """
    kind = config.get("type")
    own = given_licence(given, "--source-license") if given else UNKNOWN_LICENCE
    first: tuple[Source, ...] = {"NLISourcesConfig": (MULTINLI, HANS), "TemplateCorpusConfig": (TEMPLATE_CORPUS,)}.get(
        str(kind), (Source("the study's own data", own),)
    )
    described = {name.rpartition("/")[0]: str(value) for name, value in metrics.items() if name.endswith("/licence") and value}
    others = (
        Source(name, Licence("other", words, words), where=str(metrics.get(f"{name}/source", "")), is_test=True)
        for name, words in described.items()
    )
    return (*first, *others)
