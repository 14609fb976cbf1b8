"""Tables and figures of the run on real OCT: `python -m benchmarks.oct_duke_dme.report PREDICTIONS RAW OUT`.

PREDICTIONS holds one folder a model, `<arm>_<folds>`, each scored with `nnunet-qa score` and judged with
`nnunet-qa evaluate`. RAW is the raw dataset. OUT gets results.csv, results.md, per_case.csv and the figures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from nnunet_qa.cases import CaseTable
from nnunet_qa.data.images import read_picture
from nnunet_qa.evaluation.failure_detection import aurc, e_aurc, naurc, pearson, spearman
from nnunet_qa.files import write_csv, write_text
from nnunet_qa.reports.figures import Panel, disagreement_picture, panel_title, scatter_q_dice

SHOWN = "ensemble of the four folds"


def row_of(folder: Path) -> dict[str, object]:
    """Figures of one model on the test B-scans."""
    table = pd.read_csv(folder / "evaluation.csv")
    q, dice = table["q"].to_numpy(), table["dice"].to_numpy()
    with_fluid = table.loc[table["foreground"], "dice"]
    arm, folds = folder.name.rsplit("_", 1)
    return {
        "arm": arm.replace("-", " "),
        "folds": SHOWN if len(folds) > 1 else f"fold {folds}",
        "dice": dice.mean(),
        "dice_with_fluid": with_fluid.mean(),
        "spearman": spearman(q, dice),
        "pearson": pearson(q, dice),
        "aurc": aurc(q, 1 - dice),
        "e_aurc": e_aurc(q, 1 - dice),
        "naurc": naurc(q, 1 - dice),
    }


def summary_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over the folds of each arm, then the rows themselves."""
    figures = [column for column in rows.columns if column not in ("arm", "folds")]
    lines = []
    for arm, group in rows[rows["folds"] != SHOWN].groupby("arm", sort=False):
        line: dict[str, object] = {"arm": arm, "folds": f"mean (SD) of {len(group)} folds"}
        line |= {name: f"{group[name].mean():.3f} ({group[name].std(ddof=1):.3f})" for name in figures}
        lines.append(line)
    exact = rows.copy()
    exact[figures] = exact[figures].map(lambda value: f"{value:.3f}")
    return pd.concat([pd.DataFrame(lines), exact])


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    head = f"| {' | '.join(table.columns)} |\n|{'---|' * len(table.columns)}\n"
    return head + "".join(f"| {' | '.join(map(str, row))} |\n" for row in table.itertuples(index=False))


def pictures(folder: Path, raw: Path, out: Path) -> None:
    """The test B-scans of lowest Q with both outputs, and Q against Dice."""
    table = pd.read_csv(folder / "evaluation.csv").sort_values(["q", "case_id"])
    panels = [
        Panel(
            title=panel_title(row.case_id, row.q, dice=row.dice),
            image=read_picture(raw / "imagesTs" / f"{row.case_id}_0000.png"),
            finest=read_picture(folder / f"{row.case_id}.png"),
            second=read_picture(folder / "second_output" / f"{row.case_id}.png"),
            truth=read_picture(raw / "labelsTs" / f"{row.case_id}.png"),
        )
        for row in table.head(8).itertuples()
    ]
    disagreement_picture(out / "lowest_q.png", panels, heading="Test B-scans of lowest Q", class_names=["fluid"])
    subjects = CaseTable.read(raw / "cases.csv").subjects()
    scatter_q_dice(
        out / "q_dice.png",
        table["q"].to_numpy(),
        table["dice"].to_numpy(),
        subjects=[subjects[case] for case in table["case_id"]],
    )


def main(predictions: Path, raw: Path, out: Path) -> None:
    """Write everything."""
    out.mkdir(parents=True, exist_ok=True)
    folders = sorted(folder for folder in predictions.iterdir() if (folder / "evaluation.csv").is_file())
    rows = pd.DataFrame([row_of(folder) for folder in folders])
    write_csv(out / "results.csv", rows.round(4))
    write_text(out / "results.md", markdown(summary_of(rows)))
    shown = next(folder for folder in folders if len(folder.name.rsplit("_", 1)[1]) > 1)
    write_csv(out / "per_case.csv", pd.read_csv(shown / "evaluation.csv"))
    write_text(out / "evaluation.json", json.dumps(json.loads((shown / "evaluation.json").read_text()), indent=2))
    pictures(shown, raw, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
