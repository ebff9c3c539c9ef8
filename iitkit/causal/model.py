"""The causal model: named variables, mechanisms, and interchange interventions on them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iitkit.causal import checks
from iitkit.causal.declarations import Declarations
from iitkit.causal.encodings import Encoding
from iitkit.causal.hypotheses import Disagreement, Hypothesis, distinguish
from iitkit.causal.template import Template, Text
from iitkit.causal.variables import Codes
from iitkit.errors import IITKitError, choices, did_you_mean

Setting = dict[str, Codes]
"""Variable → integer codes of its values, [n] each."""
Inputs = Mapping[str, Any]
"""Exogenous variable → codes (an int64 array) or values (a list), [n] each."""
Source = Inputs | tuple[Inputs, str]
"""Where a variable takes its value from: the inputs of a source; with a name, the value of that variable there."""


class CausalModel(Declarations):
    """A hypothesis: variables, each computed from its parents, down to inputs from declared domains.

    Functions are the graph: a mechanism's argument names are its parents. Mechanisms are compiled to lookup tables, so
    that runs and interchanges are array operations on integer codes.

    >>> model = CausalModel(prompt="{left} plus {right} is", output="answer")
    >>> model.variables(left=[0, 1], right=[0, 1])
    >>> @model.mechanism
    ... def total(left: int, right: int) -> int:
    ...     return left + right
    >>> @model.mechanism
    ... def answer(total: int) -> str:
    ...     return f" {total}"
    >>> base, source = {"left": [0], "right": [1]}, {"left": [1], "right": [1]}
    >>> model.values(model.interchange(base, {"total": source}), "answer")
    [' 2']
    >>> model.values(model.interchange(base, {"total": (source, "left")}), "answer")  # total ← left of the source
    [' 1']

    Args:
        prompt: one template or several (a slot is a variable, its place in the text a span, and a span a position), or
            an encoding for inputs that are no text.
        output: the variable that is the answer.
        candidates: variables whose values, in the base, are the answers that compete; the output's whole domain
            unless said.
        surface: answer's value → its text or texts, with the space before it if it has one; the first is the label
            that is trained on, and any of them counts as that answer. Unless said, the values are the texts.

    Raises:
        IITKitError: templates whose slots differ, a surface without text.
    """

    def __init__(
        self,
        prompt: str | Sequence[str] | Encoding,
        output: str,
        candidates: Sequence[str] = (),
        surface: Mapping[Any, str | Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.encoding: Encoding | None = None
        self.templates: list[Template] = []
        if isinstance(prompt, str):
            self.templates = [Template(prompt)]
        elif isinstance(prompt, Sequence):
            self.templates = [Template(text) for text in prompt]
            if not self.templates:
                raise IITKitError("a causal model needs a prompt, at least one")
        else:
            self.encoding = prompt
        for template in self.templates[1:]:
            if set(template.slots) != set(self.templates[0].slots):
                raise IITKitError(
                    f"prompt {template.template!r} has the slots {sorted(template.slots)}, the first has "
                    f"{sorted(self.templates[0].slots)}: all must have the same"
                )
        self.output, self.candidates = output, list(candidates)
        self.surface = checks.surface_forms(surface)

    @staticmethod
    def from_dict(written: Mapping[str, Any]) -> CausalModel:
        """Return a model that is written as plain values; see ``iitkit.causal.written``."""
        from iitkit.causal.written import from_mapping

        return from_mapping(written)

    @staticmethod
    def from_yaml(path: str | Path) -> CausalModel:
        """Return a model that is written in a YAML file; see ``iitkit.causal.written``."""
        from iitkit.causal.written import from_yaml

        return from_yaml(path)

    # --- making the model ---

    def compile(self) -> CausalModel:
        """Check the graph, the names, the domains and the templates, and tabulate the mechanisms.

        Raises:
            IITKitError: a cycle, an unknown parent, slot, output or candidate, a mechanism that leaves its domain, an
                output without text, constraints that no input satisfies.

        Warns:
            UserWarning: two inputs that have one prompt.
        """
        if self._order is not None:
            return self
        order = checks.order_of(self)
        if self.encoding is None and not self.surface:
            for name in [self.output, *self.candidates]:
                self.domains[name].labels = True
                for value in self.domains[name].values:
                    self.domains[name].check_label(value)
        for name in order:
            self.mechanisms[name].compile(self.domains)
        for constraint in self.constraints.values():
            constraint.compile(self.domains)
        self._order = order
        try:
            if self.encoding is not None:
                columns = {slot: self.domains[slot].values for slot in self.slots}
                self.encoding.bind(columns, self.domains[self.output].values)
            checks.check_answers(self)
            checks.check_inputs(self)
        except IITKitError:
            self._order = None
            raise
        return self

    # --- using it ---

    @property
    def parents(self) -> dict[str, list[str]]:
        """Every variable's parents, none of an exogenous one; a parent stands before its children."""
        self.compile()
        assert self._order is not None
        return {
            **{name: [] for name in self.exogenous},
            **{name: self.mechanisms[name].parents for name in self._order},
        }

    @property
    def slots(self) -> list[str]:
        """The names of the prompt's spans, or of the variables that an encoding reads."""
        return self.templates[0].slots if self.encoding is None else self.encoding.slots

    def encode(self, inputs: Inputs) -> Setting:
        """Return inputs (variable → array of codes, or list of values) as codes.

        Raises:
            IITKitError: a missing or unknown variable, or a value outside its domain.
        """
        for name in inputs:
            self.check_variable(name, "input")
        if missing := [name for name in self.exogenous if name not in inputs]:
            raise IITKitError(f"inputs lack a value for {choices(missing)}")
        return {name: self._codes(name, values) for name, values in inputs.items()}

    def _codes(self, name: str, values: Any) -> Codes:
        domain, codes = self.domains[name], []
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) != 1:
            shape = f" of shape {list(values.shape)}" if hasattr(values, "shape") else f" {values!r}"
            raise IITKitError(
                f"variable {name!r}: given a {type(values).__name__}{shape}, expected one value a row in a list, or "
                "codes in an integer array [n]"
            )
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            if len(values) and not (values.min() >= 0 and values.max() < len(domain)):
                raise IITKitError(
                    f"variable {name!r}: codes {values.min()} to {values.max()}, expected 0 to {len(domain) - 1} "
                    "(an integer array holds codes; give values as a list)"
                )
            return values.astype(np.int64, copy=False)
        if not isinstance(values, np.ndarray) and hasattr(values, "dtype") and hasattr(values, "numpy"):
            raise IITKitError(
                f"variable {name!r}: given a {type(values).__name__}, expected values in a list (tolist()) or codes in "
                "an integer array (numpy())"
            )
        for value in values:
            code = domain.add(value) if name in self.open else domain.find(value)
            if code is None:
                raise IITKitError(
                    f"variable {name!r} has no value {value!r}.{did_you_mean(value, domain.values)} "
                    f"Its domain: {choices(domain.values)}"
                    + ("" if domain.complete else " (as far as it has been met: declare it with domain=[…])")
                )
            codes.append(code)
        return np.asarray(codes, dtype=np.int64)

    def run(self, inputs: Inputs, do: Mapping[str, Any] | None = None) -> Setting:
        """Return every variable's codes on the inputs.

        Args:
            inputs: exogenous variable → codes or values, [n] each.
            do: variables held at codes or values instead of computed.

        Raises:
            IITKitError: see :meth:`encode`; other numbers of rows.
        """
        self.compile()
        held = {}
        for name, values in (do or {}).items():
            self.check_variable(name, "intervention")
            held[name] = self._codes(name, values)
        setting = {name: codes for name, codes in self.encode(inputs).items() if name in self.exogenous}
        sizes = {name: len(codes) for name, codes in {**setting, **held}.items()}
        if len(set(sizes.values())) > 1:
            raise IITKitError(f"inputs and interventions must have as many rows each, given {sizes}")
        assert self._order is not None
        return self._computed(setting, held, self._order)

    def _computed(self, setting: Setting, held: Setting, order: Sequence[str]) -> Setting:
        """Complete exogenous codes by the mechanisms of ``order``, with some variables held."""
        domains = self.domains
        setting = {**setting, **{name: codes for name, codes in held.items() if name in self.exogenous}}
        for name in order:
            mechanism = self.mechanisms[name]
            setting[name] = (
                held[name] if name in held else mechanism.run([setting[p] for p in mechanism.parents], domains)
            )
        return setting

    def held(self, known: Setting, do: Setting) -> Setting:
        """Return every variable's codes on inputs that were run already, with some variables held.

        Only what depends on these is computed again: on a large domain all else is what takes the time.

        Args:
            known: every variable's codes on the inputs, as :meth:`run` returns them, [n] each.
            do: variable → codes that it is held at, [n] each.
        """
        assert self._order is not None
        moved = set(do)
        for name in self._order:
            if not moved.isdisjoint(self.mechanisms[name].parents):
                moved.add(name)
        setting = {**known, **do}
        return self._computed(setting, dict(do), [name for name in self._order if name in moved])

    def interchange(self, base: Inputs, sources: Mapping[str, Source]) -> Setting:
        """Return every variable's codes on the base with some variables set to values that they have under sources.

        Args:
            base: inputs, [n] each.
            sources: variable → the inputs of its source, [n] each; several variables may share one. A pair (inputs,
                name) gives the variable the value that the variable ``name`` has in that source.

        Raises:
            IITKitError: see :meth:`run`; a value of another variable that is outside this one's domain.
        """
        self.compile()
        wanted: dict[int, tuple[Inputs, list[tuple[str, str]]]] = {}
        for name, source in sources.items():
            self.check_variable(name, "intervention")
            inputs, taken = source if isinstance(source, tuple) else (source, name)
            self.check_variable(taken, "source's variable")
            wanted.setdefault(id(inputs), (inputs, []))[1].append((name, taken))
        held: Setting = {}
        for inputs, pairs in wanted.values():
            found = self.reached(inputs, [taken for _, taken in pairs])
            for name, taken in pairs:
                held[name] = found[taken] if taken == name else self._translated(found[taken], taken, name)
        return self.run(base, do=held)

    def reached(self, inputs: Inputs, names: Sequence[str]) -> Setting:
        """Return the codes of some variables on inputs: only what they depend on is computed."""
        needed, stack = set(), list(names)
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack += self.mechanisms[name].parents if name in self.mechanisms else []
        setting = {name: codes for name, codes in self.encode(inputs).items() if name in self.exogenous}
        if len({len(codes) for codes in setting.values()}) > 1:
            return self.run(inputs)  # says what is wrong
        assert self._order is not None
        return self._computed(setting, {}, [name for name in self._order if name in needed])

    def _translated(self, codes: Codes, taken: str, name: str) -> Codes:
        """Return codes of one variable's values as codes of another's."""
        values, domain = self.domains[taken].values, self.domains[name]
        table = np.full(len(values), -1, dtype=np.int64)
        for code in np.unique(codes).tolist():
            found = domain.add(values[code]) if name in self.open else domain.find(values[code])
            if found is None:
                raise IITKitError(
                    f"interchange {name!r} ← {taken!r} of the source: {values[code]!r} is no value of {name!r}. "
                    f"Its domain: {choices(domain.values)}"
                    + ("" if domain.complete else " (as far as it has been met: declare it with domain=[…])")
                )
            table[code] = found
        return table[codes]

    def values(self, setting: Mapping[str, Codes], name: str) -> list[Any]:
        """Return a variable's values, decoded."""
        self.check_variable(name)
        domain = self.domains[name].values
        return [domain[code] for code in setting[name].tolist()]

    def forms(self, value: Hashable) -> tuple[str, ...]:
        """Return the texts that count as an answer, the label first.

        Raises:
            IITKitError: a value without one.
        """
        if not self.surface:
            return (str(value),)
        if (type(value), value) not in self.surface:
            known = [key for _, key in self.surface]
            raise IITKitError(f"answer {value!r} has no surface form: surface says {choices(map(repr, known))}")
        return self.surface[type(value), value]

    def answers(self, setting: Mapping[str, Codes], name: str) -> list[str]:
        """Return a variable's values as the texts that are trained on."""
        self.check_variable(name)
        domain = self.domains[name].values
        texts = {code: self.forms(domain[code])[0] for code in np.unique(setting[name]).tolist()}
        return [texts[code] for code in setting[name].tolist()]

    def allowed(self, setting: Mapping[str, Codes]) -> npt.NDArray[np.bool_]:
        """Return which rows of a full setting satisfy every constraint, [n]."""
        fine = np.ones(len(next(iter(setting.values()))), dtype=bool)
        for name in self.constraints:
            fine &= self.satisfied(setting, name)
        return fine

    def satisfied(self, setting: Mapping[str, Codes], constraint: str) -> npt.NDArray[np.bool_]:
        """Return which rows of a full setting satisfy one constraint, [n]."""
        condition = self.constraints[constraint]
        codes = condition.run([setting[p] for p in condition.parents], self.domains)
        return np.asarray([bool(value) for value in condition.domain.values], dtype=bool)[codes]

    def render(self, setting: Mapping[str, Codes], templates: Codes) -> list[Text]:
        """Return the prompts of a full setting, each by the template of that index.

        Raises:
            IITKitError: a model whose inputs are no text.
        """
        if self.encoding is not None:
            raise IITKitError(f"the inputs of this model are {type(self.encoding).__name__}, no text: use features()")
        columns = {slot: self.values(setting, slot) for slot in self.slots}
        return [
            self.templates[t].render({slot: values[i] for slot, values in columns.items()})
            for i, t in enumerate(templates.tolist())
        ]

    def features(self, setting: Mapping[str, Codes]) -> npt.NDArray[Any]:
        """Return the inputs of a full setting as arrays, [n, …].

        Raises:
            IITKitError: a model whose inputs are text.
        """
        if self.encoding is None:
            raise IITKitError("the inputs of this model are text: use render()")
        return self.encoding.encode({slot: self.values(setting, slot) for slot in self.slots})

    def distinguish(
        self, hypotheses: Sequence[str] | Mapping[str, Hypothesis], pairs: tuple[Inputs, Inputs]
    ) -> Disagreement:
        """Return how often hypotheses predict different labels on pairs; see ``iitkit.causal.hypotheses``."""
        return distinguish(self, hypotheses, pairs)

    # --- looking at it ---

    def print(self) -> str:
        """Print the model, and return what was printed."""
        from iitkit.causal.drawing import as_text

        text = as_text(self)
        print(text)
        return text

    def plot(self, ax: Any = None) -> Any:
        """Draw the graph in layers with matplotlib; returns the axes."""
        from iitkit.causal.drawing import plot

        return plot(self, ax)

    def mermaid(self) -> str:
        """Return the graph as a mermaid flowchart, which Markdown pages of GitHub and the Hub draw."""
        from iitkit.causal.drawing import as_mermaid

        return as_mermaid(self)
