"""One table of several runs: what differs has a column, the rest a sentence."""

from convsmith.report.side_by_side import SETTINGS, side_by_side


def run(name, accuracy, **more):
    record = {"accuracy": accuracy, "loss": 0.25, "accuracy_ci95": (accuracy - 0.1, accuracy + 0.1), "n": 1200}
    return {"name": name, **record, "best_epoch": 3, "epochs": 5, "parameters": 12345, "seconds": 2.0, **more}


def test_only_what_differs_has_a_column():
    rows, alike = side_by_side([run("a", 0.9), run("b", 0.8, f1=0.75)], [("optim.lr", ["0.1", "0.01"])])
    assert rows == [
        {"run": "a", "accuracy": "90.00%", "95% interval": "80.00 to 100.00%", "F1": "-", SETTINGS: "optim.lr=0.1"},
        {
            "run": "b",
            "accuracy": "80.00%",
            "95% interval": "70.00 to 90.00%",
            "F1": "75.00%",
            SETTINGS: "optim.lr=0.01",
        },
    ]
    assert alike == {
        "loss (nats)": "0.2500",
        "images": "1,200",
        "best epoch": "3 of 5",
        "parameters": "12,345",
        "seconds": "2.0",
    }


def test_the_accuracy_is_shown_even_where_it_is_the_same():
    rows, alike = side_by_side([run("a", 0.9), run("b", 0.9)], [])
    assert [list(row) for row in rows] == [["run", "accuracy", "95% interval"]] * 2
    assert "accuracy" not in alike
