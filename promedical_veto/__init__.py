"""The veto where people are: an environment of verifiers, a scorer of Inspect. A package of its
own, since verifiers finds a taskset by the name of a top-level module; the kit never imports it.
"""

__all__ = ["VetoTaskset"]  # what verifiers looks for under the id promedical-veto


def __getattr__(name: str):
    if not name.startswith("Veto"):
        raise AttributeError(name)
    from promedical_veto import taskset  # needs verifiers, which users of Inspect do without

    return getattr(taskset, name)
