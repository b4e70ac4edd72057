"""A checkpoint through the worker, from its pin to the run that goes on from it: real service, worker and training."""

from __future__ import annotations

import io
from pathlib import Path

from nanollama.api import schemas
from nanollama.api.status import RunState
from tests.support.examples import tiny_yaml
from tests.support.service import serve_new_sqlite
from tests.support.waiting import eventually
from tests.worker.test_end_to_end import Laboratory, laboratory

__all__ = ["laboratory"]  # a fixture

EVALUATION = "evaluation: {period: 20, num_sequences: 4}\n"


def test_a_run_goes_on_from_a_pinned_checkpoint_of_another(laboratory: Laboratory, tmp_path: Path) -> None:
    client = laboratory.client
    submitted = client.submit(yaml=tiny_yaml(40, checkpoint={"period": 20}) + EVALUATION)
    past = laboratory.wait_for_the_end(submitted.runs[0].id)
    assert past.state is RunState.SUCCEEDED
    first, last = client.checkpoints(past.id)
    scores = {found.step: found for found in client.evaluations(past.id)}
    assert (first.step, first.evaluation_loss) == (20, scores[20].loss)
    assert scores[20].loss == client.metrics(past.id, ["eval/loss"]).series["eval/loss"].value[0]
    assert scores[40].by_position is not None
    assert len(scores[40].by_position.positions) == 7

    assert client.pin_checkpoint(past.id, 20).pending == "pin"
    assert client.delete_checkpoint(past.id, 40).pending == "delete"
    eventually(lambda: not any(saved.pending for saved in client.checkpoints(past.id)), what="the worker's next sync")
    first, last = client.checkpoints(past.id)
    assert (first.pinned, last.removed) == (True, True)
    folder = laboratory.root / past.id / "checkpoints"
    assert (folder / "0000000020" / "pinned").exists()
    assert [path.name for path in folder.iterdir()] == ["0000000020"]

    made = client.clone(past.id, schemas.Clone(from_checkpoint=20, overrides={"optim.steps": 60}))
    run = laboratory.wait_for_the_end(made.runs[0].id)
    assert run.state is RunState.SUCCEEDED
    assert client.metrics(run.id, ["loss"]).series["loss"].step == list(range(21, 61))
    (started,) = [event for event in client.events(run.id) if event.kind == "started"]
    assert started.step == 20
    assert f"{past.id}/checkpoints/0000000020" in str(started.message)
    assert [found.step for found in client.evaluations(run.id)] == [20, 40, 60]
    assert client.evaluations(run.id)[0].loss == scores[20].loss  # the same learner on the same sequences

    archive = b"".join(client.export_experiment(made.id))
    with serve_new_sqlite(tmp_path / "elsewhere") as url, type(client)(url) as elsewhere:
        assert elsewhere.import_archive(io.BytesIO(archive)).runs == [run.id]
        assert elsewhere.evaluations(run.id) == client.evaluations(run.id)
        assert elsewhere.run(run.id).result == client.run(run.id).result
        keys = ["loss", "bound", "eval/kl"]
        assert elsewhere.metrics(run.id, keys).series == client.metrics(run.id, keys).series
