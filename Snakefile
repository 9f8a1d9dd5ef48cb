# One rule a notebook, in the kit's order; `make reproduce` calls this, and so may you:
#   snakemake --cores all --config profile=cpu
# Executor plugins take the same graph to Slurm or Kubernetes.
#
# What a notebook depends on is the `code` parameter: a hash of its cells, of the modules that they
# reach, of the profile's settings and of the lock (promedical_utils.run.notebooks.fingerprint). File times
# would rerun everything after a checkout, and train again for a reworded comment. The committed
# reference under papers_figures/ is neither input nor output: only `make publish` writes it.
from promedical_utils.core.profiles import profile_for
from promedical_utils.run import notebooks

PROFILE = config.get("profile", "cpu")
RUN = config.get("run", f"runs/{PROFILE}")
SETTINGS = profile_for(PROFILE)
NAMES = notebooks.notebooks(SETTINGS)


def made_by(name):
    return [f"{RUN}/notebooks/{name}.ipynb", *(f"{RUN}/{path}" for path in notebooks.OUTPUTS[name])]


rule all:
    input:
        [path for name in NAMES for path in made_by(name)],


for before, name in zip([None, *NAMES], NAMES):

    rule:
        name: f"notebook_{name}"
        input:
            [] if before is None else f"{RUN}/notebooks/{before}.ipynb",
        output:
            made_by(name),
        params:
            code=notebooks.fingerprint(name, SETTINGS),
            notebook=name,
        # two torch processes side by side slow each other down many times over
        threads: workflow.cores
        shell:
            '"${{PROMEDICAL_PYTHON:-python}}" -m promedical_utils notebook {params.notebook}'
            " --profile {PROFILE:q} --run {RUN:q}"
