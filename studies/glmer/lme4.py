"""glmer, in a process of R that stays open: reading, importing and starting are off the clock."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from studies._sets import DATA

# logLik of glmer is the whole log-likelihood by Laplace's method, but with nAGQ > 1 that relative
# to the saturated model: its constant is added here.
SERVER = """
suppressMessages(library(lme4))
cbpp <- read.csv("DATA/cbpp.csv")
cbpp$period <- factor(cbpp$period)
ticks <- read.csv("DATA/grouseticks.csv")
ticks$YEAR <- factor(ticks$YEAR)
births <- read.csv("DATA/contraception.csv")
births$use <- as.integer(births$use == "Y")
saturated <- function(y, family)
  if (family == "poisson") sum(dpois(y, y, log = TRUE)) else
  if (is.matrix(y)) sum(dbinom(y[, 1], rowSums(y), y[, 1] / rowSums(y), log = TRUE)) else 0
timed <- function(formula, data, family, points, derivs) {
  control <- glmerControl(calc.derivs = derivs)
  started <- Sys.time()
  m <- suppressMessages(suppressWarnings(
    glmer(formula, data, family, nAGQ = points, control = control)))
  seconds <- as.numeric(Sys.time() - started, units = "secs")
  constant <- if (points > 1) saturated(model.response(model.frame(m)), family) else 0
  sprintf("%.9f %.12g", seconds, as.numeric(logLik(m)) + constant)
}
input <- file("stdin", "r")
cat("ready\\n")
while (length(line <- readLines(input, 1)) > 0) {
  cat(eval(parse(text = line)), "\\n")
  flush(stdout())
}
"""


class Lme4:
    """An open process of R; a context."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        script = Path(self.folder.name) / "server.R"
        script.write_text(SERVER.replace("DATA", DATA.as_posix()), "utf-8")
        self.process = subprocess.Popen(
            ["Rscript", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Lme4:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()

    @property
    def ready(self) -> bool:
        """Whether R could load lme4; to be asked once, first."""
        return self._line() == "ready"

    def fit(
        self, formula: str, data: str, family: str, *, points: int, derivs: bool
    ) -> tuple[float, float]:
        """(seconds, log-likelihood) of one fit."""
        assert self.process.stdin is not None
        flag = "TRUE" if derivs else "FALSE"
        self.process.stdin.write(f'timed({formula}, {data}, "{family}", {points}, {flag})\n')
        self.process.stdin.flush()
        answer = self._line()
        if not answer:
            raise RuntimeError(f"R stopped while fitting {formula}")
        seconds, value = answer.split()
        return float(seconds), float(value)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()
