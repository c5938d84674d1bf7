"""The packages that only the extras `cpu` and `cuda` bring, and what is said where they are missing.

Without them audits work, and all that reads a study's plan and its results.
"""

from importlib.util import find_spec

from pipelines.errors import UserError

ENGINE = (
    *("ray", "torch", "transformers", "vllm", "deepspeed", "peft", "mlflow"),
    *("accelerate", "gguf", "safetensors", "tokenizers"),
)
"""As they are imported."""
WAY_OUT = (
    "the extra cuda or cpu brings it; in a checkout: `make EXTRA=cuda` where there is an NVIDIA GPU, or `pip install "
    "'.[cuda]'` into this environment, and `make` elsewhere"
)


def check_installed(what: str, *packages: str) -> None:
    """Raise UserError unless `packages`, by default all of the engine, are there for `what`, such as a command.

    Nothing is imported.
    """
    if missing := [package for package in packages or ENGINE if find_spec(package) is None]:
        raise _missing(what, *missing)


def of_missing_package(error: BaseException) -> UserError | None:
    """What to say of an import that failed for want of one of these packages; None for any other error."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return _missing("this command", package) if package in ENGINE else None


def _missing(what: str, *packages: str) -> UserError:
    named, num_others = ", ".join(packages[:4]), len(packages[4:])
    others = f" and {num_others} more, which" if num_others else ", which"
    return UserError(f"{what} needs {named}{others} {'is' if len(packages) == 1 else 'are'} not installed: {WAY_OUT}")
