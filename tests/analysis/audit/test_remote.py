"""An audit of a pool in a bucket, over S3's own protocol on loopback."""

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.audit.audit import AuditSettings, audit

ROWS = {
    "premise": [f"A man number {row} eats soup" for row in range(60)],
    "hypothesis": [f"A man number {row // 2} eats" for row in range(60)],
    "label": ["entailment", "neutral", "contradiction"] * 20,
}


def test_a_split_in_a_bucket_is_audited_as_it_is_here(bucket, s3_client, tmp_path, monkeypatch):
    monkeypatch.setenv("BLINDSWEEP_CACHE", str(tmp_path / "cache"))
    table, folder = pa.table(ROWS), tmp_path / "pool"
    folder.mkdir()
    for name, part in {"train-00000-of-00002": table[:40], "train-00001-of-00002": table[40:], "test": table[:6]}.items():
        pq.write_table(part, folder / f"{name}.parquet")
        s3_client.upload_file(str(folder / f"{name}.parquet"), bucket.removeprefix("s3://"), f"pool/{name}.parquet")
    there, here = (
        audit(f"{root}:train", AuditSettings(reference=f"{root}:test", processes=1)) for root in (f"{bucket}/pool", folder)
    )
    assert there.file.num_rows == 60 and there.reference is not None and there.reference.num_rows == 6
    assert (there.heuristics, there.duplicates, there.samples[1:]) == (here.heuristics, here.duplicates, here.samples[1:])
    assert there.file.path == f"{bucket}/pool:train"
