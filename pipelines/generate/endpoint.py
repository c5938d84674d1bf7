"""A pool that a model behind an OpenAI-compatible endpoint writes: its requests, their retries, and what they cost.

Shards are planned, parsed and committed as those of an engine are. Requests of several shards are under way at a time, in the
process that drives the stage: the endpoint does the work. What each shard's requests used is kept in `spent/*.json`, that of
shards which the pool does without among it, because it was paid for.
"""

from __future__ import annotations

import email.utils
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.generate.config import GenerationConfig
from pipelines.generate.prompting import Endpoint, Shots, messages
from pipelines.generate.shards import Commit, Shard, ShardFolder
from pipelines.generate.writer import PROMPTS, is_needed, tables
from pipelines.tasks.examples import read_examples

if TYPE_CHECKING:
    import httpx

SPENT = "spent"
LONGEST_WAIT_S = 60.0
LONGEST_ASKED_S = 600.0
"""A server that asks for a longer pause has a quota that is used up: a run does not sit it out."""
RETRIED = frozenset({408, 409, 425, 429})
"""Besides 500 and above: the server says that the same request may succeed later."""


@dataclass(frozen=True)
class Spent:
    """What requests used: tokens as the server counts them, and requests that had to be sent again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_retries: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.num_retries + other.num_retries,
        )


def spent_on(folder: ShardFolder) -> Spent:
    """What all requests of a pool used, as far as their shards were finished."""
    return sum((Spent(**json.loads(folder.read(path))) for path in folder.paths(SPENT, ".json")), Spent())


def dollars_of(config: GenerationConfig, used: Spent) -> float:
    """What the endpoint of a pool is paid for what was used; 0 for one without an endpoint."""
    return config.endpoint.dollars(used.prompt_tokens, used.completion_tokens) if config.endpoint else 0.0


def run_endpoint(config: GenerationConfig, output: str, shards: list[Shard], request: str) -> Iterator[dict[str, Any]]:
    """Have the endpoint write `shards`, in order; yield one row of counts for each, as `run_engines` does.

    Raises UserError where the endpoint refuses a request, or does not answer one after all attempts.
    """
    import httpx

    assert config.endpoint is not None
    concurrency = config.endpoint.concurrency
    limits = httpx.Limits(max_connections=concurrency)
    started = time.perf_counter()
    with (
        httpx.Client(timeout=config.endpoint.timeout_s, limits=limits, headers=_headers(config.endpoint)) as client,
        ThreadPoolExecutor(concurrency) as requests,
        # So many that the next shard's requests wait when one shard's last ones run out.
        ThreadPoolExecutor(1 + -(-2 * concurrency // config.shard_size)) as writers,
    ):
        writer = _Writer(config, output, request, client, requests)
        waiting = {writers.submit(writer.write, shard) for shard in shards}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    if (written := future.result()) is not None:
                        commit, spent = written
                        yield {
                            "label": commit.label,
                            "num_parsed": commit.num_parsed,
                            "num_rejected": sum(commit.rejected.values()),
                            "num_tokens": commit.num_tokens,
                            "dollars": dollars_of(config, spent),
                            "engine_start_s": 0.0,
                            "since_ready_s": time.perf_counter() - started,
                            "peak_gpu_memory_gib": 0.0,
                        }
        finally:
            # Whatever ends this, no further request is paid for.
            writer.stopped.set()
            for future in waiting:
                future.cancel()


def _headers(endpoint: Endpoint) -> dict[str, str]:
    key = os.environ.get(endpoint.api_key_env, "")
    return {"Authorization": f"Bearer {key}"} if key else {}


class _Writer:
    """Writes shards, several at a time, with requests that share a pool of threads."""

    def __init__(
        self, config: GenerationConfig, output: str, request: str, client: httpx.Client, requests: ThreadPoolExecutor
    ) -> None:
        assert config.prompting is not None and config.endpoint is not None
        self.stopped = threading.Event()
        self._config, self._prompting, self._endpoint = config, config.prompting, config.endpoint
        self._request, self._client, self._requests = request, client, requests
        self._folder, self._lock = ShardFolder(output), threading.Lock()
        examples = read_examples(config.examples, config.task) if config.prompting.shots else None
        self._shots = Shots(config.prompting, config.task, examples)

    def write(self, shard: Shard) -> tuple[Commit, Spent] | None:
        """The shard, and what its requests used; None if it is not needed."""
        config = self._config
        if self.stopped.is_set() or not is_needed(shard, config, self._folder, self._lock):
            return None
        turns = messages(shard.label, self._shots.of(shard), self._prompting, config.task, config.end_marker)
        answers: list[Future[tuple[str, Spent]]] = [
            self._requests.submit(self._ask, turns, shard.label, shard.row_seed(row)) for row in range(shard.count)
        ]
        try:
            written = [answer.result() for answer in answers]
        except BaseException:
            self.stopped.set()
            for answer in answers:
                answer.cancel()
            raise
        spent = sum((spent for _, spent in written), Spent())
        parsed, rejects = tables(shard, [text for text, _ in written], config)
        with self._lock:
            self._folder.write(f"{SPENT}/{shard.name}.json", json.dumps(asdict(spent)).encode())
            if shard.index == 0:
                shown = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
                self._folder.write(f"{PROMPTS}/{shard.label}.txt", shown.encode())
            return self._folder.commit(shard, self._request, parsed, rejects, spent.completion_tokens), spent

    def _ask(self, turns: list[dict[str, str]], label: str, seed: int) -> tuple[str, Spent]:
        """One answer as a generated text: from behind the label on, and up to the end marker if the model ended it."""
        config = self._config
        body = {
            "model": self._endpoint.model,
            "messages": turns,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_new_tokens,
            "seed": seed,
            "stop": [config.stop],
            # Not in OpenAI's interface; vLLM's server knows it.
            **({"top_k": config.top_k} if config.top_k != -1 else {}),
        }
        answer, num_retries = self._post(body)
        try:
            (choice,) = answer["choices"]
            text, reason, usage = choice["message"]["content"] or "", choice.get("finish_reason"), answer.get("usage") or {}
            spent = Spent(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0), num_retries)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self._endpoint.url} answered with no chat completion ({str(answer)[:200]!r}); give the url "
                "of an OpenAI-compatible server, up to /v1"
            ) from error
        prompted = config.task.prompted(label)
        if prompted in text[: 2 * len(prompted)]:
            text = text.partition(prompted)[2]
        # The server keeps the marker to itself; a text that is cut off ends with "length".
        return (text + config.end_marker if reason == "stop" and config.end_marker not in text else text), spent

    def _post(self, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The answer to a request, and how often it was sent again. Raises UserError if there is none."""
        import httpx

        endpoint, why = self._endpoint, ""
        for attempt in range(endpoint.most_attempts):
            pause = min(LONGEST_WAIT_S, endpoint.backoff_s * 2**attempt)
            try:
                response = self._client.post(f"{endpoint.url.rstrip('/')}/chat/completions", json=body)
            except httpx.TransportError as error:  # among them timeouts, and connections that break
                why = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    try:
                        return dict(response.json()), attempt
                    except (TypeError, ValueError):
                        why = f"{response.status_code} with no JSON"
                elif response.status_code in RETRIED or response.status_code >= 500:
                    why = f"{response.status_code}: {self._shown(response)}"
                    pause = _asked_pause(response.headers.get("Retry-After"), time.time, pause)
                    if pause > LONGEST_ASKED_S:
                        raise UserError(
                            f"{endpoint.url} asks for a pause of {pause:,.0f} s ({self._shown(response)}); run again then: "
                            "committed shards are kept"
                        )
                else:
                    raise UserError(
                        f"{endpoint.url} refuses requests of model={endpoint.model!r} with {response.status_code} "
                        f"({self._shown(response)}); see that url, model and the key in {endpoint.api_key_env} are right"
                    )
            if attempt + 1 < endpoint.most_attempts and self.stopped.wait(pause):
                break
        raise UserError(
            f"{endpoint.url} gave no answer in {endpoint.most_attempts} attempts, the last with {why}; run again later: "
            "committed shards are kept. A lower concurrency may be what it takes"
        )

    def _shown(self, response: httpx.Response) -> str:
        """The beginning of a server's answer, without the key that some repeat."""
        key = os.environ.get(self._endpoint.api_key_env, "")
        text = " ".join(response.text.split())
        return (text.replace(key, "…") if key else text)[:200]


def _asked_pause(header: str | None, now: Callable[[], float], otherwise: float) -> float:
    """Seconds that a `Retry-After` asks for, as a number or a date; `otherwise` without one that can be read."""
    if not header:
        return otherwise
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now())
    except ValueError:
        return otherwise
