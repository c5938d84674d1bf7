"""What a user takes home: `blindsweep export`, a task model for transformers or peft; `publish`, a study for a hub."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import UserError
from pipelines.extras import check_installed
from sweep.commands.completion import cells
from sweep.commands.options import DEFAULT_STORE, StoreUri, StudyName, study_name
from sweep.graph.records import Store, Study

License = Annotated[
    str, typer.Option(metavar="ID", help="Licence of what is written, by the hub's identifier. [default: unknown, and said]")
]
BaseLicense = Annotated[str, typer.Option(metavar="ID", help="The base model's, where it is not known.")]
SourceLicense = Annotated[str, typer.Option(metavar="ID", help="That of your own data.")]
Language = Annotated[str, typer.Option(metavar="CODE", help="Language of your own data, as en.")]
DTYPES = ("auto", "float32", "bfloat16", "float16")


def export(
    cell: Annotated[
        str, typer.Argument(metavar="CELL", help="A task model: its slug, fingerprint, folder or URI.", autocompletion=cells)
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; not there yet.")],
    store: StoreUri = DEFAULT_STORE,
    merge: Annotated[bool, typer.Option("--merge", help="Fold an adapter into the weights: one model, and no peft.")] = False,
    body: Annotated[
        bool, typer.Option("--body", help="The body, as AutoModel loads it, and the head beside it as a file of its own.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of the weights: auto (their own), float32, bfloat16, float16.")] = "auto",
    license: License = "",
    base_license: BaseLicense = "",
    source_license: SourceLicense = "",
    language: Language = "",
) -> None:
    """Write a task model as transformers loads it, or peft where it is an adapter, with the logits that it has here.

    With tokenizer, labels, and a card that has its prompt, its results and
    what it was built from.

        blindsweep export start0-original-900-seed0 my-model
        blindsweep export start5000-synthetic-1800-seed0 my-model --merge
    """
    check_installed("blindsweep export", "torch", "transformers")
    from pipelines.models.process import without_gpus
    from sweep.publish.models import TASK_MODELS, export_model
    from sweep.publish.naming import find_artifact
    from sweep.publish.origins import Said

    said = Said(license, base_license, source_license, language)
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: give one of {', '.join(DTYPES)}")
    # Weights are copied, not computed with; told in time, libraries do not look for a GPU.
    without_gpus()
    where, record = find_artifact(Store(store), cell, TASK_MODELS)
    files = export_model(where, record, folder, said, merge=merge, body=body, dtype=dtype)
    over = f", an adapter over {files.base}" if files.base else ""
    print(f"{record.id.name} as {files.architecture}{over}: {folder}")
    print(f"  how it is loaded and asked: {folder / 'README.md'}")


def publish(
    study: StudyName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; not there yet.")],
    store: StoreUri = DEFAULT_STORE,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="CELL", help="A task model as well, as `export` names it; may be repeated.", autocompletion=cells),
    ] = None,
    training_sets: Annotated[bool, typer.Option("--training-sets", help="The training sets as well.")] = False,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Of models the cards alone.")] = False,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Pools without their audit.")] = False,
    license: License = "",
    base_license: BaseLicense = "",
    source_license: SourceLicense = "",
    language: Language = "",
    push: Annotated[
        str, typer.Option(metavar="ORG/NAME", help="Bring them to the hub, as ORG/NAME-…, with the token in HF_TOKEN.")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="Make what --push makes public. [default: private]")] = False,
) -> None:
    """Write a study's pool, generator and models as repositories of a hub, with cards; bring them there only when asked.

    A card has counts, results or the audit, licences and lineage.
    What a licence asks, and what is not known, is said.

        blindsweep publish demo my-repositories --model start0-synthetic-900-seed0
        blindsweep publish demo my-repositories --training-sets --license cc-by-4.0 --push my-name/demo
    """
    from pipelines.models.process import without_gpus
    from sweep.publish.origins import Said
    from sweep.publish.study import publish_study
    from sweep.publish.upload import check_upload, upload

    if model and not no_weights:
        check_installed("publish --model without --no-weights", "torch", "transformers")
    said = Said(license, base_license, source_license, language)
    if push:
        check_upload(push)
    elif public:
        raise UserError("--public without --push ORG/NAME: nothing leaves this machine; say where it is to go")
    without_gpus()
    where = Store(store)
    repositories = publish_study(
        where,
        Study.load(where, study_name(study)),
        folder,
        said,
        models=model or (),
        training_sets=training_sets,
        weights=not no_weights,
        audit=not no_audit,
        pushed_as=push,
    )
    for line in dict.fromkeys(line for repository in repositories for line in repository.restrictions):
        print(f"before you pass it on, {line}")
    if push:
        upload(repositories, push, public=public)
