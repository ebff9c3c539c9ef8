"""The causal model: named variables, mechanisms, and interchange interventions on them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

import numpy as np

from iitkit.causal.template import Template, Text
from iitkit.causal.variables import Codes, Domain, Mechanism
from iitkit.errors import IITKitError, choices, did_you_mean

Function = TypeVar("Function", bound=Callable[..., Any])
Setting = dict[str, Codes]
"""Variable → integer codes of its values, [n] each."""


class CausalModel:
    """A hypothesis: variables with finite domains, each computed from its parents.

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

    Args:
        prompt: one template or several; a slot is a variable, its place in the text a span, and a span a position.
        output: the variable that is the answer, a string with the space before it if it has one.
        candidates: variables whose values, in the base, are the answers that compete; the output's whole domain
            unless said.

    Raises:
        IITKitError: templates whose slots differ.
    """

    def __init__(self, prompt: str | Sequence[str], output: str, candidates: Sequence[str] = ()) -> None:
        self.templates = [Template(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
        if not self.templates:
            raise IITKitError("a causal model needs a prompt, at least one")
        for template in self.templates[1:]:
            if set(template.slots) != set(self.templates[0].slots):
                raise IITKitError(
                    f"prompt {template.template!r} has the slots {sorted(template.slots)}, the first has "
                    f"{sorted(self.templates[0].slots)}: all must have the same"
                )
        self.output, self.candidates = output, list(candidates)
        self.exogenous: dict[str, Domain] = {}
        self.mechanisms: dict[str, Mechanism] = {}
        self.constraints: dict[str, Mechanism] = {}
        self._order: list[str] | None = None

    # --- making the model ---

    def variables(self, **domains: Sequence[Hashable]) -> None:
        """Declare exogenous variables and their domains.

        Raises:
            IITKitError: an empty domain, a value that stands twice, a name that is taken.
        """
        for name, values in domains.items():
            self._new(name)
            self.exogenous[name] = Domain(name, list(values))
            if not len(self.exogenous[name]):
                raise IITKitError(f"variable {name!r} has an empty domain")

    def mechanism(self, function: Function) -> Function:
        """Declare a variable computed from others: the function's name and its arguments' names are the graph."""
        self._new(function.__name__)
        self.mechanisms[function.__name__] = Mechanism(function.__name__, function)
        return function

    def constraint(self, function: Function) -> Function:
        """Declare a condition on variables; inputs for which it is false are never sampled.

        Raises:
            IITKitError: a name that another constraint has.
        """
        if function.__name__ in self.constraints:
            raise IITKitError(f"constraint {function.__name__!r} is declared twice: name each differently")
        self.constraints[function.__name__] = Mechanism(function.__name__, function)
        self._order = None
        return function

    def _new(self, name: str) -> None:
        if name in self.exogenous or name in self.mechanisms:
            raise IITKitError(f"variable {name!r} is declared twice")
        self._order = None

    def compile(self) -> CausalModel:
        """Check the graph, the names, the domains and the templates, and tabulate the mechanisms.

        Raises:
            IITKitError: a cycle, an unknown parent, slot, output or candidate, an output that is not a string.
        """
        if self._order is not None:
            return self
        known = [*self.exogenous, *self.mechanisms]
        for mechanism in [*self.mechanisms.values(), *self.constraints.values()]:
            for parent in mechanism.parents:
                self._check_known(parent, known, f"mechanism {mechanism.name!r}: parent")
        for slot in self.templates[0].slots:
            self._check_known(slot, known, "prompt: slot")
        for name in [self.output, *self.candidates]:
            self._check_known(name, known, "output or candidate")
        try:
            order = list(TopologicalSorter({name: m.parents for name, m in self.mechanisms.items()}).static_order())
        except CycleError as error:
            raise IITKitError(f"the causal graph has a cycle: {' → '.join(error.args[1])}") from error
        order = [name for name in order if name in self.mechanisms]
        for name in [self.output, *self.candidates]:
            if name in self.exogenous:
                raise IITKitError(f"output or candidate {name!r} is exogenous: an answer needs a mechanism")
            self.domains[name].labels = True
        for name in order:
            self.mechanisms[name].compile(self.domains)
        for constraint in self.constraints.values():
            constraint.compile(self.domains)
        self._order = order
        return self

    @staticmethod
    def _check_known(name: str, known: Sequence[str], what: str) -> None:
        if name not in known:
            raise IITKitError(
                f"{what} {name!r} is no variable.{did_you_mean(name, known)} The variables are {choices(known)}"
            )

    # --- using it ---

    @property
    def domains(self) -> dict[str, Domain]:
        """Every variable's domain."""
        return {**self.exogenous, **{name: m.domain for name, m in self.mechanisms.items()}}

    @property
    def slots(self) -> list[str]:
        """The names of the prompt's spans."""
        return self.templates[0].slots

    def check_variable(self, name: str, where: str = "variable") -> None:
        """Check that a variable exists.

        Raises:
            IITKitError: naming it, the closest, and all there are.
        """
        self._check_known(name, [*self.exogenous, *self.mechanisms], where)

    def encode(self, inputs: Mapping[str, Any]) -> Setting:
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
        if isinstance(values, np.ndarray) and values.dtype == np.int64:
            if len(values) and not (values.min() >= 0 and values.max() < len(domain)):
                raise IITKitError(
                    f"variable {name!r}: codes {values.min()} to {values.max()}, expected 0 to {len(domain) - 1} "
                    "(an integer array holds codes; give values as a list)"
                )
            return values
        for value in values:
            code = domain.find(value)
            if code is None:
                raise IITKitError(
                    f"variable {name!r} has no value {value!r}.{did_you_mean(value, domain.values)} "
                    f"Its domain: {choices(domain.values)}"
                )
            codes.append(code)
        return np.asarray(codes, dtype=np.int64)

    def run(self, inputs: Mapping[str, Any], do: Mapping[str, Any] | None = None) -> Setting:
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
        domains = self.domains
        setting = {name: codes for name, codes in self.encode(inputs).items() if name in self.exogenous}
        sizes = {name: len(codes) for name, codes in {**setting, **held}.items()}
        if len(set(sizes.values())) > 1:
            raise IITKitError(f"inputs and interventions must have as many rows each, given {sizes}")
        setting.update({name: codes for name, codes in held.items() if name in self.exogenous})
        assert self._order is not None
        for name in self._order:
            mechanism = self.mechanisms[name]
            setting[name] = (
                held[name] if name in held else mechanism.run([setting[p] for p in mechanism.parents], domains)
            )
        return setting

    def interchange(self, base: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> Setting:
        """Return every variable's codes on the base with some variables set to their values under sources.

        Args:
            base: inputs, [n] each.
            sources: variable → the inputs of its source, [n] each.

        Raises:
            IITKitError: see :meth:`run`.
        """
        for name in sources:
            self.check_variable(name, "intervention")
        return self.run(base, do={name: self.run(source)[name] for name, source in sources.items()})

    def values(self, setting: Mapping[str, Codes], name: str) -> list[Hashable]:
        """Return a variable's values, decoded."""
        self.check_variable(name)
        domain = self.domains[name].values
        return [domain[code] for code in setting[name]]

    def allowed(self, setting: Mapping[str, Codes]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which rows of a full setting satisfy every constraint, [n]."""
        fine = np.ones(len(next(iter(setting.values()))), dtype=bool)
        for constraint in self.constraints.values():
            codes = constraint.run([setting[p] for p in constraint.parents], self.domains)
            fine &= np.asarray([bool(value) for value in constraint.domain.values])[codes]
        return fine

    def render(self, setting: Mapping[str, Codes], templates: Codes) -> list[Text]:
        """Return the prompts of a full setting, each by the template of that index."""
        columns = {slot: self.values(setting, slot) for slot in self.slots}
        return [
            self.templates[t].render({slot: values[i] for slot, values in columns.items()})
            for i, t in enumerate(templates.tolist())
        ]
