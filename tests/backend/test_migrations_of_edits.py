"""Notes, archive, pins and evaluations come with a migration that leaves everything else as it was, up and down."""

from __future__ import annotations

from sqlalchemy import inspect, text

from backend.deps import Context
from backend.migrate import downgrade, migrate
from tests.support.service import Caller
from tests.support.whole import answers, fill


def test_a_database_with_everything_goes_down_and_up_again(caller: Caller, context: Context) -> None:
    fill(caller)
    before = answers(caller)
    database = context.database
    downgrade(database, "0005")
    columns = {column["name"] for column in inspect(database.engine).get_columns("runs")}
    assert {"name", "tags"} < columns
    assert not {"notes", "archived"} & columns
    assert "evaluations" not in inspect(database.engine).get_table_names()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM checkpoints")).scalar() == 2
    migrate(database)
    after = answers(caller)
    assert after == before
    run_id = before["/runs?limit=500"]["items"][0]["id"]
    assert caller.http.patch(f"/runs/{run_id}", json={"notes": "n", "archived": True}).status_code == 200
    assert caller.get("/runs", filter="archived:true")["items"][0]["notes"] == "n"
