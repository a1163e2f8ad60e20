"""The only place where detectron2, MMEngine and MMSegmentation are imported."""

import warnings

# mmcv without compiled ops says so at every start; nothing here needs them.
warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
