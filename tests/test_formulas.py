"""Formulas: what is adapted and shared, the numbers in x, and every refusal by its sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bayesmeta.results import InputError
from bayesmeta.tables import family_from_csv, family_from_formula, family_like, parse_formula
from bayesmeta.tasks import TableInfo, TaskFamily

DATA = Path(__file__).parent / "data"
FRAME = pd.DataFrame(
    {
        "g": list("aaaabbbbcccc"),
        "h": list("uvuvuvuvuvuv"),
        "x": [0.0, 1, 2, 3, 0, 1, 2, 4, 1, 2, 3, 5],
        "z": [1.0, 4, 2, 3, 5, 1, 1, 2, 4, 4, 1, 3],
        "Sex": ["M", "F", "F", "M"] * 3,
        "k": [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3],
        "my col": np.arange(12.0) ** 2,
        "y": [1.5, 2.5, 2, 4.5, 0.5, 1, 3.5, 2.5, 7, 6.5, 5, 8],
    }
)


def table_of(family: TaskFamily) -> TableInfo:
    assert family.table is not None
    return family.table


def rows(family: TaskFamily, name: str = "x") -> torch.Tensor:
    """The real rows of a family, task by task."""
    assert family.mask is not None
    return family.tensors[name][family.mask]


def refusal(formula: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        family_from_formula(formula, FRAME, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- adapted and shared ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "columns", "adapted"),
    [
        ("x + (x | g)", ("Intercept", "x"), 2),
        ("1 + (1 | g)", ("Intercept",), 1),
        ("x + (1 | g)", ("Intercept", "x"), 1),
        ("x + (0 + x | g)", ("x", "Intercept"), 1),
        ("z + x + (x | g)", ("Intercept", "x", "z"), 2),
        ("0 + x + (0 + x | g)", ("x",), 1),
        ("x * z + (x + z | g)", ("Intercept", "x", "z", "x:z"), 3),
        ("x * z + (z:x | g)", ("Intercept", "x:z", "x", "z"), 2),
        ("I(x**2) + (I(x**2) | g)", ("Intercept", "I(x ** 2)"), 2),
        ("Sex + x + (Sex | g)", ("Intercept", "Sex[M]", "x"), 2),
        ("0 + Sex + (0 + Sex | g)", ("Sex[F]", "Sex[M]"), 2),
        ("C(k) + (1 | g)", ("Intercept", "C(k)[2]", "C(k)[3]"), 1),
        ("`my col` + (`my col` | g)", ("Intercept", "my col"), 2),
        ("x + (x | g:h)", ("Intercept", "x"), 2),
    ],
)
def test_the_bar_is_adapted_and_comes_first(right, columns, adapted):
    table = table_of(family_from_formula(f"y ~ {right}", FRAME))
    assert table.columns == columns
    assert table.adapted == columns[:adapted]
    assert table.formula == f"y ~ {right}"


def test_the_numbers_in_x():
    family = family_from_formula("y ~ Sex * I(x - 1) + z + (I(x - 1) | g)", FRAME)
    x = FRAME["x"].to_numpy() - 1
    male = (FRAME["Sex"] == "M").to_numpy().astype(float)
    columns = ("Intercept", "I(x - 1)", "Sex[M]", "Sex[M]:I(x - 1)", "z")
    assert table_of(family).columns == columns
    expected = np.column_stack([np.ones(12), x, male, male * x, FRAME["z"]])
    assert torch.equal(rows(family), torch.from_numpy(expected))
    assert family.tensors["x"].dtype == torch.float64
    assert table_of(family).coding == {"Sex": ("F", "M")}
    assert table_of(family).notes == ("Sex is a category with levels F, M, compared with F",)


def test_categories_without_an_intercept_have_a_column_each():
    table = table_of(family_from_formula("y ~ 0 + Sex + (0 + Sex | g)", FRAME))
    assert table.notes == ("Sex is a category with levels F, M, each with a column",)


@pytest.mark.parametrize("function", ["log", "np.log"])
def test_functions_are_applied_elementwise(function):
    family = family_from_formula(f"y ~ {function}(z) + (1 | g)", FRAME)
    assert torch.equal(rows(family)[:, 1], torch.from_numpy(np.log(FRAME["z"].to_numpy())))


def test_offsets_of_formula_column_and_exposure_add_up():
    family = family_from_formula(
        "k ~ x + offset(log(z)) + (1 | g)", FRAME, offset="y", exposure="z", likelihood="poisson"
    )
    assert table_of(family).columns == ("Intercept", "x")
    expected = 2 * np.log(FRAME["z"].to_numpy()) + FRAME["y"].to_numpy()
    assert torch.allclose(rows(family, "offset"), torch.from_numpy(expected), atol=1e-14)


def test_responses():
    counts = family_from_formula(
        "k/`my n` ~ 1 + (1|g)", FRAME.assign(**{"my n": 3}), likelihood="binomial"
    )
    assert rows(counts, "trials").unique().tolist() == [3.0]
    assert table_of(counts).response == "k/`my n`"
    logged = family_from_formula("log(y) ~ x + (x | g)", FRAME)
    assert torch.equal(rows(logged, "y"), torch.from_numpy(np.log(FRAME["y"].to_numpy())))
    new = family_like(table_of(logged), FRAME.drop(columns="y"), require_response=False)
    assert "y" not in new.tensors
    sexes = family_from_formula("Sex ~ x + (1 | g)", FRAME, likelihood="bernoulli")
    assert rows(sexes, "y").tolist() == [1, 0, 0, 1] * 3


def test_a_formula_and_a_list_of_columns_agree():
    listed = family_from_csv(DATA / "radon.csv", task="county", x=["floor"], y="log_radon")
    written = family_from_formula("log_radon ~ floor + (floor | county)", DATA / "radon.csv")
    assert listed.names == written.names
    assert torch.equal(listed.tensors["y"], written.tensors["y"])
    assert torch.equal(listed.tensors["x"], written.tensors["x"][..., 1:])
    assert torch.equal(torch.ones(85, 116).double(), written.tensors["x"][..., 0])


@pytest.mark.parametrize(
    ("formula", "file", "options", "tasks", "columns"),
    [
        (
            "use ~ age + I(age**2) + urban + livch + (1 | urban:district)",
            "contraception",
            {"likelihood": "bernoulli"},
            102,
            7,
        ),
        ("incidence/size ~ C(period) + (1 | herd)", "cbpp", {"likelihood": "binomial"}, 15, 4),
        ("TICKS ~ C(YEAR) + (1 | BROOD)", "grouseticks", {"likelihood": "poisson"}, 118, 3),
        ("Hits/`At-Bats` ~ 1 + (1|LastName)", "baseball", {"likelihood": "binomial"}, 18, 1),
        ("y ~ 1 + (1 | school)", "eight_schools", {"standard_error": "sigma"}, 8, 1),
        ("distance ~ Sex*I(age-11) + (I(age-11) | Subject)", "orthodont", {}, 27, 4),
        ("height ~ age + I(age**2) + (age + I(age**2) | Subject)", "oxboys", {}, 26, 3),
        ("weight ~ Time + C(Diet) + (Time | Chick)", "chickweight", {}, 50, 5),
        ("Yield ~ 1 + (1 | Batch)", "dyestuff", {}, 6, 1),
    ],
)
def test_formulas_of_the_reference_fits_are_read(formula, file, options, tasks, columns):
    family = family_from_formula(formula, DATA / f"{file}.csv", **options)
    assert (len(family), family.tensors["x"].shape[-1]) == (tasks, columns)


def test_pooled_least_squares_of_a_design_is_the_known_one():
    """Balanced data: the prior mean is the pooled estimate, so it is in the reference fits."""
    reference = json.loads((DATA / "reference" / "reference.json").read_text())
    family = family_from_formula("Reaction ~ Days + (Days | Subject)", DATA / "sleepstudy.csv")
    fit = torch.linalg.lstsq(rows(family), rows(family, "y")[:, None]).solution[:, 0]
    beta = torch.tensor(reference["sleepstudy Days|Subject_ML"]["beta"], dtype=torch.float64)
    assert torch.allclose(fit, beta, rtol=1e-9)


# --- a new table read the same way ----------------------------------------------------------------


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ scale(x) + center(z) + (scale(x) | g)",
        "y ~ Sex * standardize(x) + C(k) + (1 | g)",
        "y ~ poly(x, 2) + (1 | g)",
        "y ~ bs(x, df=4) + (1 | g)",
        "y ~ Sex:x + (1 | g)",
        "y ~ x + offset(z) + (1 | g:h)",
    ],
)
def test_a_new_table_gets_the_same_design_row_by_row(formula):
    family = family_from_formula(formula, FRAME)
    table = TableInfo.from_json(json.loads(json.dumps(table_of(family).to_json())))
    assert family_like(table, FRAME).fingerprint() == family.fingerprint()
    whole = rows(family)
    for first, last in ((0, 1), (4, 8)):
        part = family_like(table, FRAME.iloc[first:last])
        assert torch.allclose(rows(part), whole[first:last], rtol=0, atol=1e-12)
        assert table_of(part).columns == table.columns


def test_scale_keeps_the_mean_and_sd_of_the_first_table():
    family = family_from_formula("y ~ scale(x) + (1 | g)", FRAME)
    new = family_like(table_of(family), pd.DataFrame({"g": ["z"], "x": [10.0], "y": [0.0]}))
    expected = (10 - FRAME["x"].mean()) / FRAME["x"].std(ddof=0)
    assert new.tensors["x"][0, 0, 1].item() == pytest.approx(expected, abs=1e-14)


def test_an_unknown_level_is_refused_by_row():
    table = table_of(family_from_formula("y ~ Sex + C(k) + (1 | g)", FRAME))
    new = pd.DataFrame({"g": ["z", "z"], "Sex": ["M", "F"], "k": [1, 4], "y": [1.0, 2]})
    with pytest.raises(InputError, match=r"index 1, column 'k': the level 4 is not one of those"):
        family_like(table, new)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "sentence"),
    [
        ("y ~ x", "has no bar: say what differs between tasks, as in (1 | group) or (x | group)"),
        ("y ~ x + (1 | g) - (1 | g)", "subtracts its bar: keep one (x | group)"),
        ("y ~ x + (1 | g) + (1 | h)", "has 2 grouping factors (g, h): crossed and nested groups"),
        ("y ~ x + (1 | g/h)", "has 2 grouping factors (g, g:h): crossed and nested groups are not"),
        ("y ~ x + (z | g)", "has 'z' in the bar but not in the common part: add it to the common"),
        ("y ~ 0 + x + (x | g)", "has an intercept in the bar but none in the common part"),
        (
            "y ~ x + (x || g)",
            "has '||': write one '|' and ask for uncorrelated weights by the prior",
        ),
        ("y ~ x + (1 | g) + (0 + x | g)", "has several bars on 'g': write one bar and ask for"),
        (
            "y ~ x + x | g",
            "has nothing outside its bar: write the bar in brackets after the common",
        ),
        ("y ~ x + (1 | C(g))", "groups by 'C(g)': group by a column, or by an interaction of"),
        (
            "y ~ Sex + (0 + Sex | g)",
            "codes the bar as Sex[F], Sex[M] but these terms of the common",
        ),
        (
            "y ~ x*Sex + (x:Sex | g)",
            "codes the bar as Intercept, x:Sex[F], x:Sex[M] but these terms",
        ),
        ("y ~ x + foo(z) + (1 | g)", "uses the function 'foo': known are I, C, offset, log,"),
        ("y ~ x + os.system(z) + (1 | g)", "uses the function 'os.system': known are"),
        ("y ~ x + I(Sex*2) + (1 | g)", "computes I(Sex * 2) from 'Sex', which is a category"),
        ("y ~ C(k, Sum) + (1 | g)", "has C(k, Sum): C takes one column and nothing else"),
        ("y ~ x z + (1 | g)", "cannot be read ('z' is out of place): write it like"),
        ("y ~ _x + (1 | g)", "cannot be read (Unexpected character: _): write it like"),
        ("y ~ `x + (1 | g)", "has a backquote that is not closed: close it"),
        ("y ~ x + (x - 1 | g)", "combines terms in a way that cannot be read: write products out"),
        ("~ x + (1 | g)", "lacks a side of its '~': write y ~ x + (x | group)"),
        ("y", "needs one '~' between response and predictors, as in 'y ~ x + (x | group)'"),
        ("y ~ I((x+z)*k) + I(x+z*k) + (1|g)", "has two terms that are written 'I(x + z * k)'"),
        ("y ~ bs(x, df=1) + (1 | g)", "cannot be applied to DataFrame: df=1 is too small"),
    ],
)
def test_formulas_that_are_refused(formula, sentence):
    assert refusal(formula).startswith(f"the formula {formula!r} {sentence}")


@pytest.mark.parametrize(
    ("formula", "sentence"),
    [
        (
            "y ~ X + (1 | g)",
            "DataFrame has no column 'X': did you mean 'x'? its columns are g, h, x",
        ),
        (
            "Y ~ x + (1 | g)",
            "DataFrame has no column 'Y': did you mean 'y'? its columns are g, h, x",
        ),
        (
            "y ~ x + (1 | G)",
            "DataFrame has no column 'G': did you mean 'g'? its columns are g, h, x",
        ),
        ("y ~ y + (1 | g)", "column 'y' is both the response and a predictor"),
        ("y ~ g + (1 | g)", "column 'g' is both the task and a predictor"),
        (
            "y ~ log(x) + (1 | g)",
            "DataFrame, index 0, column 'log(x)': the formula gives -inf here",
        ),
        (
            "log(x) ~ z + (1 | g)",
            "DataFrame, index 0, column 'x': log(x) is not finite for 0.0 (and",
        ),
        ("center(y) ~ x + (1 | g)", "the response 'center(y)' uses 'center': only I, log, log2"),
        (
            "y ~ x + I(2*x) + (1 | g)",
            "DataFrame: column 'I(2 * x)' is an exact linear combination of 'x', so their weights",
        ),
        (
            "y ~ x + I(0*x + 3) + (1 | g)",
            "DataFrame, column 'I(0 * x + 3)' is 3 in every row, so its weight cannot be estimated",
        ),
    ],
)
def test_columns_that_are_refused(formula, sentence):
    assert refusal(formula).startswith(sentence)


def test_a_computed_response_needs_a_real_valued_likelihood():
    message = refusal("log(y) ~ x + (1 | g)", likelihood="poisson")
    assert message.startswith(
        "the response 'log(y)' is computed, which needs likelihood 'gaussian'"
    )


def test_a_group_interaction_may_share_a_column_with_the_predictors():
    assert len(family_from_formula("y ~ h + (1 | g:h)", FRAME)) == 6


def test_parsing_alone_reads_no_data():
    formula = parse_formula("Reaction ~ Days + (Days | Subject)")
    assert (formula.response, formula.task, formula.predictors) == (
        "Reaction",
        "Subject",
        ("Days",),
    )
    assert formula.adapted == (0, 1)
