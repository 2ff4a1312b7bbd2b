"""The sentences of the decision page and the gallery: right, and wrong when a table is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import bayesmeta as bm
from bayesmeta import options
from bayesmeta.methods import Method
from bayesmeta.results import InputError
from studies import _pages as pages
from studies import _said as said
from studies._framework import FIGURES, studies
from studies._which import DECISIONS, HEAD, which
from studies.any_optimiser.settings import FULL, trained
from studies.calibration.fitted import AVOIDING, LINEAR
from studies.compute_memory.measure import rules
from studies.few_shot_sinusoid.settings import CHOSEN, GRID
from studies.joint_or_amortised import contestants
from studies.omniglot import settings as omniglot
from tests.page_cases import CASES

Table = pd.DataFrame
M = bm.methods


def chosen(table: Table, where: dict[str, Any]) -> pd.Series:
    found = pd.Series(True, index=table.index)
    for column, value in where.items():
        found &= table[column] == value
    assert found.any(), f"no row where {where}: the plant would plant nothing"
    return found


def put(column: str, value: Any, **where: Any) -> Callable[[Table], Table]:
    """The same table with another value where the other columns are so."""
    return lambda table: table.assign(**{column: table[column].mask(chosen(table, where), value)})


def also(*plants: Callable[[Table], Table]) -> Callable[[Table], Table]:
    def planted(table: Table) -> Table:
        for plant in plants:
            table = plant(table)
        return table

    return planted


def drop(**where: Any) -> Callable[[Table], Table]:
    return lambda table: table[~chosen(table, where)]


def fewest(table: Table) -> Table:
    return table[table["tasks"] == 5]


AGAINST = "does not bear the advice out"
OURS = {"method": "joint, solved", "points": 2}
REFUSED: list[tuple[str, Callable[[Table], Table], str]] = [
    ("exact", put("nats", 0.02, criterion="ML"), AGAINST),
    ("points", put("nll_median", 2.25, **OURS), AGAINST),
    ("points", put("nll_median", 2.0, **OURS), AGAINST),
    ("points", drop(**OURS), "0 values for 'joint, solved'"),
    ("points", lambda table: pd.concat([table[:1], table[:1]]), "2 values for 'joint, solved'"),
    ("few weights", put("mean_difference", 0.5, method="joint"), AGAINST),
    ("few weights", drop(method="laplace"), "0 values for 'laplace'"),
    ("glmer", put("nats_from_ours", 0.02, tool="glmer"), AGAINST),
    ("glmer", put("nats_from_ours", 0.02, nats_from_ours=1e-6), AGAINST),
    ("glmer", drop(tool="glmer"), "no rows for 'nats_from_ours'"),
    ("small network", put("nll", 0.1, method="MAML", points=5), AGAINST),
    ("small network", put("nll_low", 0.85, method="MAML", points=5), AGAINST),
    ("small network", put("nll_low", 0.85, method="joint points"), AGAINST),
    ("small network", drop(method="Laplace"), AGAINST),
    ("uncertain network", put("nll", 2.05, method="fitted prior"), AGAINST),
    ("uncertain network", put("coverage", 0.85, method="fitted prior"), AGAINST),
    ("uncertain network", drop(method="full pooling"), "0 values for 'full pooling'"),
    ("best start", put("mse", 0.01, adaptation="10", method="reptile"), AGAINST),
    ("best start", put("mse_low", 0.08, adaptation="10", method="reptile"), AGAINST),
    ("best start", put("mse_low", 0.3, adaptation="1", method="reptile"), AGAINST),
    ("best start", put("mse", 0.2, method="laplace"), AGAINST),
    ("best start", drop(adaptation="1"), "no rows for 'mse_low'"),
    ("images", put("inductive_accuracy", 95.0, method="Reptile", split="random"), AGAINST),
    ("images", put("inductive_half_width", 7.7, method="Reptile"), AGAINST),
    ("images", drop(method="MAML"), AGAINST),
    ("memory", put("peak_mib", 64.0, inner_steps=256), AGAINST),
    ("memory", put("peak_mib", 2150.0, rule="maml_checkpoint", inner_steps=64), AGAINST),
    ("memory", drop(rule="maml_checkpoint"), "0 values for 'maml_checkpoint'"),
    ("memory", drop(rule="maml"), "no rows for 'inner_steps'"),
    ("layers", put("prior_sd", 0.3, form="block", case="first", layer="last"), AGAINST),
    ("layers", put("behind", 0.01, form="block", panel="score"), AGAINST),
    ("layers", put("prior_sd", None, form="block", layer="last"), "3 values of 'prior_sd'"),
    ("layers", drop(form="isotropic"), "0 values for 'isotropic'"),
    ("layers", put("behind", None, behind=2.01), "1 value of 'behind'"),
    ("few tasks", put("coverage", 0.62, form="boundary-avoiding", tasks=5), AGAINST),
    ("few tasks", put("coverage", 0.5, form="boundary-avoiding", tasks=5), AGAINST),
    ("few tasks", put("coverage", 0.8, form="maximum likelihood", tasks=40), AGAINST),
    ("few tasks", drop(tasks=5), "fewer than 30 tasks, and to more"),
    ("few tasks", fewest, "fewer than 30 tasks, and to more"),
    ("few tasks", drop(form="boundary-avoiding", tasks=5), "0 values for"),
    ("forms", put("coverage", 0.9, quantity="sum"), AGAINST),
    ("forms", put("coverage", 0.99, form="best diagonal"), AGAINST),
    ("forms", drop(form="best diagonal"), "0 values for 'best diagonal'"),
    ("any optimiser", put("error", 0.5, method="maml", family="chicks", seed=0), AGAINST),
    ("any optimiser", drop(method="shared"), "no new optimisers on sinusoids for shared"),
    ("any optimiser", put("seen", "mixture", method="mixture"), "on sinusoids for mixture"),
    ("any optimiser", drop(method="maml", family="chicks"), "no new optimisers on chicks for maml"),
    ("two paths", put("bias", 0.025, rule="every pair", panel="quadratic"), AGAINST),
    ("two paths", put("bias", 0.02, rule="shared"), AGAINST),
    ("two paths", drop(paths=2), "0 values for 'shared'"),
    ("two paths", drop(rule="every pair"), "0 values for 'every pair'"),
    ("minima", put("score", 9.0, panel="point"), AGAINST),
    ("minima", put("probability", 0.0), "no rows for"),
    ("minima", put("total", 0.0), "is inf"),
    ("gallery: prior", drop(method="no pooling"), "0 values for 'no pooling'"),
    ("gallery: few shots", drop(method="maml"), "0 values for '1'"),
    ("gallery: few shots", put("mse_high", None, method="laplace"), "1 value of 'mse_high'"),
    ("gallery: quadratics", drop(panel="search"), "no rows for 'pairs'"),
    ("gallery: quadratics", put("barrier", None, proved_minima=2), "'barrier' is nan"),
    ("gallery: anchor", drop(panel="factor"), "no rows for 'factor'"),
    ("gallery: calibration", drop(form="maximum likelihood"), "0 values for"),
]  # fmt: skip

TEN = {"method": "maml", "adaptation": "10"}
BETTER_MAML = also(*(put(name, 0.01, **TEN) for name in ("mse", "mse_low", "mse_high")))
OVERLAP = put("mse_low", 0.05, method="variational_imaml")
CHANGED: list[tuple[str, Callable[[Table], Table], str, str]] = [
    ("exact", lambda table: table[:1], "in 1 fit", "fits"),
    ("exact", put("nats", 0.0), "within 0 nats", "e-"),
    ("exact", put("nats", 4.0e-7, criterion="ML"), "within 4e-07", "3e-07"),
    ("points", drop(method="iMAML"), "this 1.25, MAML 2.50", "iMAML 2"),
    ("few weights", put("mean_mcse", 0.012, method="joint"), "up to 1.2 %", "0.8"),
    ("glmer", put("nats_from_ours", 0.0), "within 0 nats", "0.002"),
    ("small network", drop(method="MAML"), "Laplace 0.75, joint 1.40", "MAML 1"),
    ("uncertain network", put("coverage", 0.88, method="fitted prior"), "88 % of new", "97"),
    ("uncertain network", put("nll", 1.9, method="fitted prior"), "sinusoid 1.90 nats", "0.00"),
    ("best start", put("seconds", 125.0), "after 125 s", " to "),
    ("best start", put("mse_low", 0.385, method="fomaml"), "step MAML 0.340", "first-order"),
    ("images", put("seconds", 59.0, method="MAML"), "MAML 94 % in 59 s", "14 min"),
    ("memory", put("peak_mib", 60.0, rule="imaml", part="inner"), "takes 60 MiB", "61"),
    ("layers", put("prior_sd", 0.0, form="block", true_sd=0.0), "in 3 of 3 fits", "2 of 3"),
    ("few tasks", put("tasks", 1, tasks=5), "with 1 task 95", "1 tasks"),
    ("forms", put("coverage", 0.9399, quantity="sum"), "at least 93 %", "94"),
    ("any optimiser", drop(algorithm="Nesterov"), "by 1 optimiser new", "optimisers"),
    ("any optimiser", put("error", 1.0, family="chicks", method="mixture"), "(undecided)", "0.80"),
    ("two paths", put("bias", 0.0, rule="every pair"), "0.0 ± 0.8 %", "-0"),
    ("minima", lambda table: table[:1], "(medians of 1 case)", "cases"),
    ("minima", put("probability", 0.0, implicit=0.1), "medians of 2 cases", "3"),
    ("gallery: prior", put("nll", 3.0, method="fitted prior"), "predicts at 3.00", "0.00"),
    ("gallery: few shots", BETTER_MAML, "MAML has", "Laplace"),
    ("gallery: few shots", OVERLAP, "Laplace and variational iMAML have the smallest", "has"),
    ("gallery: few shots", OVERLAP, "0.040 and 0.070 (95 % intervals overlap);", "has"),
    ("gallery: few shots", put("mse", 0.9, **TEN), "one step.", "after 10"),
    ("gallery: quadratics", put("proved_minima", 1), "has one minimum wherever", "nats"),
    ("gallery: quadratics", put("several_minima", 1), "in 1 of 6,000 random pairs", "13"),
    ("gallery: quadratics", put("pairs", 1, panel="search"), "of 1 random pair.", "pairs"),
    ("gallery: anchor", put("tasks", 1, tasks=100), "over 1 task ", "tasks"),
    ("gallery: anchor", put("factor", 1.0, panel="factor"), "gives 1.00 of", "0.13"),
    ("gallery: calibration", put("coverage", 0.5, form="boundary-avoiding"), "50 %", "mends"),
    ("gallery: calibration", fewest, "hyper-prior.", "fitted to 5 they"),
    ("gallery: calibration", put("tasks", 1, tasks=5), "fitted to 1 task ", "1 tasks"),
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_sentence_is_what_the_table_says(name):
    case = CASES[name]
    assert case.function(case.table) == case.said


@pytest.mark.parametrize("name", CASES)
def test_rows_may_come_in_any_order(name):
    case = CASES[name]
    turned = case.table.iloc[::-1].reset_index(drop=True)
    families = ("sinusoids, ", "chicks times")  # are told in the table's order
    if name == "any optimiser":
        assert all(word in case.function(turned) for word in ("1.00 (undecided)", "0.80"))
        assert not any(word in case.function(turned) for word in families)
    else:
        assert case.function(turned) == case.said


@pytest.mark.parametrize(("name", "plant", "refusal"), REFUSED)
def test_a_table_against_the_advice_or_without_its_number_is_refused(name, plant, refusal):
    case = CASES[name]
    with pytest.raises(InputError, match=re.escape(refusal)):
        case.function(plant(case.table))


@pytest.mark.parametrize(("name", "plant", "there", "gone"), CHANGED)
def test_a_sentence_changes_with_the_table(name, plant, there, gone):
    case = CASES[name]
    now = case.function(plant(case.table))
    assert there in now
    assert gone not in now


@pytest.mark.parametrize("name", CASES)
def test_an_empty_table_is_refused(name):
    case = CASES[name]
    with pytest.raises(InputError):
        case.function(case.table[:0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "column", "row"),
    [
        (name, column, row)
        for name, case in CASES.items()
        for column in case.numbers
        for row in range(len(case.table) - case.others)
        if pd.notna(case.table[column].iloc[row])
    ],
)
def test_no_row_is_left_out_because_its_number_is_none(name, column, row, bad):
    case = CASES[name]
    column_of = case.table[column].astype(float)
    column_of.iloc[row] = bad
    with pytest.raises(InputError):
        case.function(case.table.assign(**{column: column_of}))


@pytest.mark.parametrize(
    ("function", "value", "words"),
    [
        (said.at_most, 0.0, "0"), (said.at_most, 2.1e-7, "3e-07"), (said.at_most, 3e-4, "0.0003"),
        (said.at_most, 9.4e-4, "0.001"), (said.at_most, 1.0, "1"), (said.nats, -0.004, "0.00"),
        (said.nats, -0.006, "-0.01"), (said.percent, 0.966, "97 %"), (said.percent, -0.001, "0 %"),
        (said.at_least, 0.9399, "93 %"), (said.at_least, 0.94, "94 %"), (said.at_least, 1, "100 %"),
        (said.span, pd.Series([2.4, 1.6]), "2"), (said.span, pd.Series([1.0, 9.0]), "1 to 9"),
        (said.listed, ["a"], "a"), (said.listed, ["a", "b"], "a and b"),
        (said.listed, ["a", "b", "c"], "a, b and c"),
    ],
)  # fmt: skip
def test_words_for_numbers(function, value, words):
    assert function(value) == words


@pytest.mark.parametrize(("number", "words"), [(0, "0 fits"), (1, "1 fit"), (6000, "6,000 fits")])
def test_a_noun_goes_with_its_number(number, words):
    assert said.count(number, "fit") == words


@pytest.fixture
def figures(tmp_path):
    """The committed tables, to be changed one at a time."""
    for name in {one.study for one in DECISIONS} | {name for name, _, _ in pages.GALLERY}:
        (tmp_path / f"{name}.csv").symlink_to(FIGURES / f"{name}.csv")
    return tmp_path


def test_the_page_names_the_table_and_the_line_that_are_at_odds(figures):
    assert which(figures)
    table = pd.read_csv(figures / "glmer.csv")
    (figures / "glmer.csv").unlink()
    table.assign(nats_from_ours=-1.0).to_csv(figures / "glmer.csv")
    with pytest.raises(InputError, match=r"glmer\.csv, counts or yes/no.*not bear the advice out"):
        which(figures)


def test_the_gallery_names_the_table_that_lacks_a_number(figures):
    assert pages.gallery(figures)
    table = pd.read_csv(figures / "anchor.csv")
    (figures / "anchor.csv").unlink()
    table[table["panel"] != "factor"].to_csv(figures / "anchor.csv")
    with pytest.raises(InputError, match=r"anchor\.csv: the table has no rows for 'factor'"):
        pages.gallery(figures)


def _run(code: str) -> dict[str, Any]:
    """The names that a line of the page leaves behind, run as a reader would."""
    fit = SimpleNamespace(adapt=lambda new, method=None: method)
    library = SimpleNamespace(
        fit=lambda model, family, **_: fit, methods=bm.methods, Prior=bm.Prior
    )
    space = {
        "bm": library,
        "m": M,
        "model": None,
        "family": None,
        "new": None,
        "fit": fit,
        "replace": replace,
    }
    exec(code, space)
    return space


CODE = [(one.study, code) for one in DECISIONS for code in re.findall(r"`([^`]+)`", one.use)]


@pytest.mark.parametrize(("study", "code"), CODE)
def test_all_code_of_the_page_can_be_run(study, code):
    assert study in studies()
    if code.startswith("--"):
        flag, value = code.split()
        assert (flag, bm.Prior(hyperprior=value).hyperprior) == ("--hyperprior", value)
    else:
        space = _run(code)
        assert isinstance(space.get("method", M.joint()), Method)
        assert isinstance(space.get("prior", bm.Prior("full")), bm.Prior)


def test_the_head_of_the_page_can_be_run():
    _run(*re.findall(r"```python\n(.*?)```", HEAD.replace("import bayesmeta as bm", ""), re.DOTALL))
    name, given = re.findall(r"--method (\w+) --option (\S+)", HEAD)[0]
    known = options.method_options(name)
    assert options.read_options([given], name, known) == {"points": 9}


def _alike(method: Method) -> Method:
    """Without what decides how long it takes and not what it is."""
    return replace(method, steps=None, compile=False, batch=None)


def _advised(study: str) -> list[Method]:
    """All methods that the page advises for a study, those of adaptation among them."""
    found = []
    for name, code in CODE:
        if name == study and re.search(r"\bm\.", code):
            space = _run(code.replace("fit.adapt(new, ", "method = dict(").replace(";", ""))
            one = space.get("method", getattr(space["fit"], "choices", None))
            found.append(one["method"] if isinstance(one, dict) else one)
    return [_alike(one) for one in found]


def _measured(study: str) -> list[Method]:
    """What the study ran under the names that the page advises."""
    if study == "few_shot_sinusoid":
        names = ("laplace", "variational_imaml", "maml", "fomaml")
        used = [GRID[name][CHOSEN[name]] for name in names]
        return [one for s in used for one in (s.method, s.adaptation) if one is not None]
    if study == "joint_or_amortised":
        problem: Any = SimpleNamespace(network=True, train=range(100), model=None)
        network = contestants.contestants(problem, contestants.NETWORK)["Laplace"]
        assert network.adaptation is not None
        return [network.method, network.adaptation]
    if study == "compute_memory":
        return [
            replace(rules(64)[n], objective=M.Validation()) for n in ("imaml", "maml_checkpoint")
        ]
    cells = [cell for cell in omniglot.TABLE if cell.maker in ("maml", "imaml")]
    own = [cell.method(omniglot.Size.of(quick=False, device="cpu")) for cell in cells]
    return [replace(one, objective=M.Validation()) for one in own]


@pytest.mark.parametrize(
    "study", ["few_shot_sinusoid", "joint_or_amortised", "compute_memory", "omniglot"]
)
def test_what_is_advised_is_what_was_measured(study):
    assert _advised(study) == [_alike(one) for one in _measured(study)]


def test_parts_of_what_is_advised_are_those_that_were_measured():
    stochastic, mixture = _advised("any_optimiser")
    was = trained(FULL)
    assert stochastic.inner == was["shared"].inner
    assert set(mixture.inner.algorithms) <= set(was["mixture"].inner.algorithms)
    prior = next(_run(code)["prior"] for name, code in CODE if "hyperprior=" in code)
    assert prior.hyperprior == LINEAR.recipes[AVOIDING].hyperprior
