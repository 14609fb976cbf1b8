from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from nnunet_qa.config import HeadWeights, QAConfig
from nnunet_qa.errors import ConfigError


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "qa.yaml").write_text(text)
    return tmp_path / "qa.yaml"


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_qa_config", raising=False)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_gives_the_defaults(tmp_path: Path, text: str) -> None:
    assert QAConfig.read(written(tmp_path, text)) == QAConfig()


def test_values_of_the_file_and_defaults_for_the_rest(tmp_path: Path) -> None:
    text = "head_weights: all\npool: {jobs: 7}\nqueue: {threshold: 0.8, number: null}\ntraining: {epochs: 3}\n"
    config = QAConfig.read(written(tmp_path, text))
    assert config.head_weights is HeadWeights.ALL
    assert (config.pool.jobs, config.pool.enabled) == (7, True)
    assert (config.queue.threshold, config.queue.number) == (0.8, None)
    assert (config.training.epochs, config.training.initial_lr) == (3, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pol: {}\n", r'unknown key "pol" \(did you mean "pool"\?\)'),
        ("training: {epoch: 5}\n", r'unknown key "training\.epoch" \(did you mean "epochs"\?\)'),
        ("zzz: 1\n", 'unknown key "zzz"$'),
        ("training: {epochs: 0}\n", r'"training\.epochs": .*greater than or equal to 1 \(found: 0\)'),
        ("training: {epochs: many}\n", r'"training\.epochs": .*integer.* \(found: \'many\'\)'),
        ("queue: {threshold: 1.5}\n", r'"queue\.threshold"'),
        ("head_weights: most\n", '"head_weights"'),
        ("injection: {at: [0.7, 0.5]}\n", r'"injection\.at": must be parts of the epochs between 0 and 1, ascending'),
        ("injection: {at: [1.0]}\n", r'"injection\.at": must be parts of the epochs'),
        ("injection: {weights: {q: 0}}\n", r'"injection\.weights": every weight must be above 0'),
        ("injection: {weights: {dice: 1}}\n", r'"injection\.weights\.dice'),
        ("injection: {weights: {curves: 1}}\n", r'"injection": the estimator "curves" needs "classifier"'),
        (
            "injection: {weights: {curves: 1}, classifier: c.pt}\n",
            r'"injection": the estimator "curves" judges acquisitions',
        ),
        ("injection: {kind: areas}\n", r"\"injection\.kind\": .*'volume' or 'area' \(found: 'areas'\)"),
        ("injection: {end_diastole: last}\n", r"\"injection\.end_diastole\": .*'first' or 'largest'"),
        ("- 1\n", "must hold keys and values, found a list"),
        ("a: [\n", "is not valid YAML"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        QAConfig.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        QAConfig.read(tmp_path / "nowhere.yaml")
    (tmp_path / "qa.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        QAConfig.read(tmp_path / "qa.yaml")


def test_where_the_settings_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert QAConfig.find(None) == (QAConfig(), None)
    assert QAConfig.find(tmp_path) == (QAConfig(), None)
    path = written(tmp_path, "pool: {jobs: 3}\n")
    assert QAConfig.find(tmp_path) == (QAConfig.read(path), path)
    other = tmp_path / "other.yaml"
    other.write_text("pool: {jobs: 5}\n")
    monkeypatch.setenv("nnUNet_qa_config", str(other))
    config, found = QAConfig.find(tmp_path)
    assert (config.pool.jobs, found) == (5, other)
    monkeypatch.setenv("nnUNet_qa_config", str(tmp_path / "gone.yaml"))
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read"):
        QAConfig.find(tmp_path)


def test_everything_off() -> None:
    off = QAConfig.off()
    assert not any([off.pool.enabled, off.scoring.every_epoch, off.scoring.final])
    assert off.head_weights is HeadWeights.NNUNET
    assert off.training == QAConfig().training


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        QAConfig().head_weights = HeadWeights.ALL  # type: ignore[misc]


def test_the_documented_defaults_are_the_defaults(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "qa-yaml.md").read_text(encoding="utf-8")
    path = tmp_path / "qa.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert QAConfig.read(path) == QAConfig()
    assert set(yaml.safe_load(path.read_text())) == set(QAConfig.model_fields)
