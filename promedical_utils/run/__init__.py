"""Commands: notebooks through papermill in Snakemake's order, doctor, publish, redraw."""
