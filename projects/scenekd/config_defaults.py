"""Every configuration key of the shared library with its default; the comment of a key is its documentation."""

from __future__ import annotations

from fvcore.common.config import CfgNode as CN

from .sample import TASKS


def own_defaults() -> CN:
    """SceneKD's own keys."""
    cfg = CN()
    cfg.SYSTEM = "kd_mtl"

    data = cfg.DATASETS = CN()
    data.TRAIN = ()  # names; several are concatenated
    data.TEST = ()
    data.ROOT = (
        ""  # a VOCdevkit, a VOC-layout folder, or a folder of COCO, CIFAR, tiny-imagenet, or of classes
    )
    data.CLASSES = ()  # class names without background; empty: the 20 VOC names; for classification the files'
    data.ON_ERROR = "raise"  # raise | skip: unusable images are left out, counted and reported
    # MiB of each data worker: training images, their masks and saved dense outputs stay in memory once they were read,
    # as far as they fit; the same samples come out
    data.CACHE_MB = 0
    data.KEEP_BOXES = 1.0  # share of the training images that keep their boxes, chosen by image id
    data.KEEP_SEM_SEG = 1.0  # share of the training images that keep their mask, chosen by image id
    data.KEEP_INSTANCE_MASKS = 1.0  # share of the training images that keep the masks of their boxes
    data.KEEP_CLASS_LABELS = 1.0  # share of the training images of each class that keep their class label
    data.IMAGES_PER_CLASS = 0  # classification: take so many training images of each class; 0: all
    data.KEEP_SEED = 0
    data.REQUIRE_LABELS = ()  # tasks; training images with labels of none of them are left out, () none
    data.MAX_IMAGES = 0  # take only the first images of each split; 0: all
    data.ALLOW_OVERLAP = False  # let a training image stand in the test set, or in a teacher's training set

    inp = cfg.INPUT = CN()
    inp.SIZE = 300  # network input is SIZE × SIZE
    inp.PHOTOMETRIC = True
    inp.ZOOM_OUT_PROB = 0.5
    inp.ZOOM_OUT_MAX = 4.0
    inp.ZOOM_OUT_PER_RUN = False  # the thesis's code tosses the coin once per run; ours once per image
    inp.ZOOM_OUT_FILL_SEG = 255  # label of the padded border: 255 void, 0 background (the repository's)
    inp.CROP_PROB = 1.0  # the IoU crop; one of its choices is the whole image
    inp.SHORT_SIDE = ()  # (min, max): scale the short side to a random length, then crop SIZE × SIZE; (): no
    inp.PAD_CROP = 0  # a window of the image's own size, moved by up to so many of its pixels (CIFAR: 4)
    inp.FLIP_PROB = 0.5
    inp.BLUR_PROB = 0.0  # of a Gaussian blur of the network input
    inp.BLUR_SIGMA = (0.1, 2.0)  # its σ in pixels, drawn evenly
    inp.ANTIALIAS = False  # True: resize as Pillow does, which many published weights were trained with
    inp.MIN_BOX_SIDE = 2.0  # pixels of the network input

    teacher = cfg.TEACHER = CN()
    for task in (task.upper() for task in TASKS):
        node = teacher[task] = CN()
        # A string in place of the node is a URI, SCHEME://NAME, that fills TYPE, NAME and WEIGHTS.
        node.TYPE = ""  # "", detectron2, mmseg, torchvision, timm, scenekd, folder, thesis
        node.NAME = ""  # of the zoo's model or config, for example maskrcnn_resnet50_fpn; or a config file
        node.WEIGHTS = ""  # weight file, torchvision's enum, folder; "" for the zoo's own; "random" for none
        node.CONFIG = ""  # scenekd: YAML of the teacher; "" reads the one inside the checkpoint
        node.CLASSES = ()  # the teacher's class names; empty: known from its type
        node.CLASS_MAP = ()  # pairs (teacher name, our name or "background"), beside the built-in synonyms
        node.ALLOW_UNMAPPED = False  # teacher classes without a counterpart become background
        node.TRAINED_ON = ()  # data sets that the teacher was trained on, checked against DATASETS.TEST
        node.CACHE = ""  # folder of the cache; "": OUTPUT_DIR/teacher_cache/<task>
        node.BACKGROUND = "none"  # none | explicit: background slot of a sparse teacher = 1 − max confidence
        node.MIN_SCORE = 0.0  # boxes below are not stored
        node.MAX_BOXES = 100  # boxes stored an image
    teacher.SEGMENTATION.SPARSE = (
        False  # a dense teacher made sparse, as Mask R-CNN's output is (teachers/sparse.py)
    )
    node = teacher.DETECTION  # how its boxes become one list, see projects/kd_mtl/README.md
    node.NMS_THRESHOLD = 0.0  # IoU of the teacher's NMS when it is cached; 0: its own; 1: keep duplicates
    node.MERGE = "none"  # none | nms | soft_nms (gaussian) | soft_nms_linear | wbf, as boxes are read
    node.MERGE_IOU = 0.5  # from here on boxes are one: nms, soft_nms_linear, wbf, and BOX_WEIGHT quality
    node.MERGE_SIGMA = 0.5  # of soft_nms
    node.MORE = ()  # further teachers, each a URI or a mapping of these keys, see teachers/more.py
    node.SCORE_FACTOR = 1.0  # its scores times this, so that several teachers' agree
    teacher.SEGMENTATION.HEAD = "auto"  # detectron2: masks | sem_seg; auto: sem_seg where the network has it
    teacher.SEGMENTATION.GRID = "own"  # own | image: detectron2's and mmseg's logits before, after resizing
    node = teacher.CONTEXT = CN()  # scene context in a cached detection teacher's class probabilities
    node.WEIGHTS = ""  # checkpoint of a network of hidden objects; "": none. Needs CLASS_TARGET vector
    node.RULE = "product"  # product | mixture, see teachers/context.py
    node.WEIGHT = 0.5  # of the context: an exponent of product, a share of mixture
    node.MAX_SCORE = 0.5  # boxes that score less are asked about; 1: all below 1
    teacher.BATCH_SIZE = 0  # images a teacher is asked about at a time; 0: 8 on CUDA, else 1
    teacher.AMP = False  # mixed precision where a teacher runs on CUDA
    teacher.SCORE_IMAGES = 100  # labelled training images on which a run scores its teachers; 0: none

    distill = cfg.DISTILL = CN()
    # cached: teachers were asked once for every image, the policies choose. online (fcn_kd): the segmentation or
    # classification teacher is asked for every batch as the student sees it. none: ground truth alone
    distill.TEACHER = "cached"
    for task in (task.upper() for task in TASKS):
        node = distill[task] = CN()
        node.POLICY = (
            "ground_truth"  # ground_truth | teacher | fill_missing | fixed_subset | per_batch | combined
        )
        node.FRACTION = 1.0  # fixed_subset, per_batch: share of the images that take the teacher
        node.SUBSET_SEED = 0
        node.GT_WEIGHT = 0.5  # combined
        node.TEACHER_WEIGHT = 0.5
    distill.DETECTION.MIN_SCORE = 0.001  # teacher boxes below are dropped; 0 keeps all
    distill.DETECTION.USE_CONFIDENCE = True  # False: teacher boxes weigh like ground truth
    distill.DETECTION.CLASS_TARGET = "hard"  # hard | vector: anchors learn a box's class, or distribution
    distill.DETECTION.NORMALIZER = "anchors"  # anchors | confidence: what counts as a teacher's positives
    distill.DETECTION.BOX_WEIGHT = "score"  # score | quality | none: of teacher boxes in the box loss
    distill.DETECTION.NEGATIVES = "plain"  # plain | teacher_aware: under a teacher's box they weigh less
    distill.DETECTION.NEGATIVES_IOU = 0.4  # of teacher_aware: an anchor is under a box from here on
    distill.DETECTION.NEGATIVES_IGNORE = 1.0  # of teacher_aware: under boxes of such scores are no negatives
    distill.DETECTION.NEGATIVES_GROUND_TRUTH = False  # teacher_aware where ground truth teaches, too
    distill.INSTANCE_SEGMENTATION.MIN_SCORE = 0.001  # teacher masks below are dropped
    distill.INSTANCE_SEGMENTATION.USE_CONFIDENCE = True  # False: they weigh like ground truth
    distill.SEGMENTATION.TARGET = "probabilities"  # probabilities | logits | scores (the thesis's)
    distill.SEGMENTATION.TEMPERATURE = 1.0
    distill.SEGMENTATION.TEMPER_STUDENT = False  # True: the student's logits are divided by T too, times T²
    distill.SEGMENTATION.CONFIDENCE = "none"  # none | max | entropy: weight of each of the teacher's pixels
    distill.SEGMENTATION.TOP_K = 0  # only so many of the teacher's likeliest classes a pixel; 0: all
    distill.SEGMENTATION.TAIL = "bucket"  # bucket | spread: what the other classes become
    distill.SEGMENTATION.VOID = "padding"  # none | padding | labels: the teacher's pixels that do not count

    return cfg


def detectron2_defaults() -> CN:
    """The keys that detectron2 has too, with the same names and meaning."""
    cfg = CN()
    cfg.VERSION = 2
    cfg.SEED = 0
    cfg.OUTPUT_DIR = "./output"
    cfg.CUDNN_BENCHMARK = False
    cfg.WANDB = False  # mirror the event writers' numbers to Weights & Biases, where wandb is installed

    cfg.MODEL = CN()
    cfg.MODEL.DEVICE = "auto"  # auto: cuda where there is one, else cpu
    cfg.MODEL.WEIGHTS = ""  # checkpoint to start from

    cfg.DATALOADER = CN()
    cfg.DATALOADER.NUM_WORKERS = 2

    solver = cfg.SOLVER = CN()
    solver.OPTIMIZER = "ADAM"  # ADAM | ADAMW | SGD
    solver.IMS_PER_BATCH = 32  # in one optimizer step, over all processes
    solver.ACCUMULATE_STEPS = 1  # IMS_PER_BATCH is run through the network in so many parts
    solver.BASE_LR = 1e-4
    solver.LR_SCHEDULER_NAME = "WarmupMultiStepLR"  # WarmupMultiStepLR | WarmupCosineLR | WarmupPolyLR
    solver.POLY_POWER = 0.9
    solver.MAX_ITER = 65000
    solver.STEPS = (40000, 50000)
    solver.GAMMA = 0.1
    solver.WARMUP_ITERS = 0
    solver.WARMUP_FACTOR = 1.0 / 1000
    solver.WARMUP_METHOD = "linear"
    solver.MOMENTUM = 0.9
    solver.NESTEROV = False
    solver.WEIGHT_DECAY = 5e-5
    solver.WEIGHT_DECAY_NORM = 0.0
    solver.WEIGHT_DECAY_BIAS = 0.0
    solver.CLIP_GRADIENTS = CN()
    solver.CLIP_GRADIENTS.ENABLED = False
    solver.CLIP_GRADIENTS.CLIP_TYPE = "full_model"  # full_model (one norm over all) | value
    solver.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    solver.CLIP_GRADIENTS.NORM_TYPE = 2.0
    solver.AMP = CN()
    solver.AMP.ENABLED = False
    solver.AMP.DTYPE = "float16"  # float16, on CUDA | bfloat16, on CPU too
    solver.EMA = CN()
    solver.EMA.ENABLED = False  # evaluate and save a running mean of the weights; last.pth holds both
    solver.EMA.DECAY = 0.999
    solver.EMA.WARMUP = 9  # the decay of step t = 0, 1, … is at most (1 + t) / (1 + t + WARMUP)
    solver.CHECK_GRADIENTS = False  # stop at a gradient that is not finite; always on with CLIP_GRADIENTS
    # Parameters wait for their own number of labelled images (UberNet: Kokkinos, CVPR 2017, section 3.1)
    solver.ASYNC_UPDATES = CN()
    solver.ASYNC_UPDATES.ENABLED = False
    solver.ASYNC_UPDATES.IMAGES = 0  # labelled for a task before its own parameters step; 0: IMS_PER_BATCH
    solver.ASYNC_UPDATES.TASK_IMAGES = ()  # pairs (task, images) for tasks with another number
    solver.ASYNC_UPDATES.SHARED_IMAGES = 0  # labelled for any task before the others step; 0: IMS_PER_BATCH
    # The pair that a config's author tuned, for the doctor: another batch size wants another rate; 0: not told
    solver.REFERENCE_IMS_PER_BATCH = 0
    solver.REFERENCE_LR = 0.0
    solver.CHECKPOINT_PERIOD = 5000  # iterations; last.pth is written, for --resume
    solver.LOG_PERIOD = 20

    test = cfg.TEST = CN()
    test.EVAL_PERIOD = 0  # iterations; 0: only at the end
    test.BATCH_SIZE = 1
    test.EVALUATOR = "native"  # native | framework
    # Of the tasks that the model has; segm: mask AP; hidden_object: rank of the class behind a mask; multi_label: mAP
    # of the classes that an image shows
    test.METRICS = ("sem_seg", "bbox", "segm", "classification", "hidden_object", "multi_label")
    test.BOX_METRIC = "voc"  # voc: area AP at IoU .5; voc07: 11-point; coco: pycocotools
    test.ERROR_ANALYSIS = False  # kinds of wrong boxes: localisation, similar class, other class, background
    test.BEST_METRIC = ""  # for example sem_seg/mIoU: keeps model_best.pth
    test.BOOTSTRAP = 1000  # resamples of the images for the intervals; 0: none
    test.EXPECTED_RESULTS = []  # [task, metric, value, tolerance], checked after the run
    test.VISUALIZE = 8  # images shown in the report
    return cfg
