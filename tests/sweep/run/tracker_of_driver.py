"""A tracker as a driver of its own has it: opens, starts and finishes the same artifacts as other drivers at the same time.

python tracker_of_driver.py URI STORE
"""

import sys

from sweep.graph.records import Store, Study
from sweep.run.tracking import Card, Tracker

if __name__ == "__main__":
    uri, store = sys.argv[1:]
    study = Study.load(Store(store), "tiny")
    records = [step.record for step in study.steps if step.record is not None]
    tracker = Tracker(uri, store, study)
    for record in records:
        tracker.start(Card.of_record(record))
        tracker.log(record.fingerprint, {"loss": 0.5}, 1, 1)
    for record in records:
        tracker.finish(record)
    print(tracker.close("FINISHED"))
