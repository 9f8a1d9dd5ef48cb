"""The criterion-conditioned reward model: packing, variants, model, training, calibration."""
