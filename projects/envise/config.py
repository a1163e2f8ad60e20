"""The configuration keys of envise, below ``MODEL.ENVISE``, ``STREAM`` and ``ONLINE``.

The comment of a key is its documentation.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode as CN

KEY = "MODEL.ENVISE"


def add_envise_config(cfg: CN) -> None:
    """Add ``cfg.MODEL.ENVISE``, ``cfg.STREAM`` and ``cfg.ONLINE``."""
    node = cfg.MODEL.ENVISE = CN()
    node.NETWORK = "plain_cnn"  # the student, a name of students.STUDENTS
    node.SCALING = (
        "weight"  # of binary convolutions: weight (mean|W| of each filter) | xnor (times XNOR-Net's K) | none
    )
    node.GRADIENT = "quadratic"  # of the sign: quadratic (2 ± 2x on [−1, 1]) | clipped (1 there)
    # Path of the module whose output is the teacher's feature map, for attention; "": its last map before pooling
    node.TEACHER_LAYER = ""

    # A video is segmented (tools/stream.py alone): the student learns frames from TEACHER.SEGMENTATION, as JITNet does
    node = cfg.MODEL.ENVISE.SEGMENTATION = CN()
    # Its configuration, of fcn_kd or kd_mtl: network, classes, INPUT, MODEL.WEIGHTS where the one above is "". A YAML
    # file, or a checkpoint that holds one; "": classes of whole images are learnt, and nothing below counts
    node.CONFIG = ""
    # At each key frame the teacher is asked, and the student takes steps on that frame while their masks' mean IoU is
    # below THRESHOLD, MAX_UPDATES at most. Then the stride to the next key frame doubles where the IoU is good enough
    # by now, else halves, within its bounds
    node.THRESHOLD = 0.8
    node.MAX_UPDATES = 8
    node.MIN_STRIDE = 8
    node.MAX_STRIDE = 64
    node.BACKGROUND = (
        False  # whether background is one of the classes of that mean, where the teacher names others
    )
    node.OBJECT_WEIGHT = 5.0  # in the loss, of pixels where the teacher sees an object; background's have 1
    # Of batch norms: kept (those of the start, no dropout, one pass serves answer and update) | frame (each update's)
    node.STATISTICS = "kept"
    node.PICTURES = (
        "none"  # of all frames: none | masks (segmentation/, indices as PNG) | overlay (overlay/, JPEG)
    )

    # What is looked at, sample by sample. Positions count the samples of the stream from 0.
    node = cfg.STREAM = CN()
    # "": the images of DATASETS.TRAIN; else a folder of images, a video file, or camera:N (OpenCV's number)
    node.SOURCE = ""
    node.SAMPLES = 50000  # length; of a folder, video or camera at most so many; 0: to its end
    node.OBJECT_CROPS = False  # of data sets with boxes: one sample an object, cut out, with the box's class
    node.CROP_MARGIN = 0.15  # of OBJECT_CROPS: so much of the box's longer side is kept around it
    node.CROP_MIN_SIDE = 12.0  # pixels; objects whose longer side is less are left out
    # The prior; of sources without classes it cannot be set, they come in their own order
    # inlier/outlier pairs of class groups: cifar100, tiny_imagenet, scenes, or a YAML file; "": all classes are inliers
    node.PAIRS = ""
    node.PAIR = ""  # the one of PAIRS
    node.OUTLIER_SHARE = 0.0  # probability that a sample is of an outlier class: 90:10 is 0.1
    node.FREQUENCIES = "uniform"  # uniform | zipf | given: of the classes within inliers and within outliers
    node.ZIPF_EXPONENT = 1.0  # s of zipf: the class of rank k = 1, 2, … has frequency ∝ k^−s
    node.RANK_SEED = (
        0  # 0: ranks follow the order in which the pair names the classes; else that order shuffled
    )
    node.GIVEN = ()  # pairs (class, weight) of given; classes that are not named have weight 0
    # Mappings {AT: position, KEY: value …}; from AT on these of PAIR … GIVEN differ, the others stay
    node.SHIFTS = ()
    node.MAX_UNREADABLE = 10  # images that cannot be read are passed over and counted; one more ends the run

    # How the student learns, when it is trusted, and when no longer
    node = cfg.ONLINE = CN()
    node.BATCH_SIZE = (
        16  # samples looked at before each update; the optimizer's step adds REPLAY_BATCH others
    )
    node.UPDATES = 1  # optimizer steps for each batch, with other replayed samples
    node.CE_WEIGHT = 1.0  # of the cross-entropy with the teacher's top class
    node.KD_WEIGHT = 0.0  # of T² · KL to the teacher's softmax; 0: pseudo-labels alone
    node.KD_TEMPERATURE = 4.0
    # The attention triplet loss, of the new samples
    node.ATTENTION = CN()
    node.ATTENTION.WEIGHT = 1.0  # 0: without it
    node.ATTENTION.KIND = "grad_cam"  # grad_cam | activation
    node.ATTENTION.DISTANCE = "l2_squared"  # l2 | l2_squared | cosine, of maps of length 1
    node.ATTENTION.MARGIN = 0.5
    node.REPLAY_SIZE = (
        2000  # samples kept of all that were learnt, each with equal chance (a reservoir); 0: none
    )
    node.REPLAY_BATCH = 48  # of them in each step
    # Convergence: the agreement with the teacher, counted before each update, is at least AGREEMENT in each of
    # WINDOWS successive windows of WINDOW samples
    node.AGREEMENT = 0.85
    node.WINDOW = 500
    node.WINDOWS = 2
    # Then CALIBRATION samples are scored without training; the threshold leaves TPR of those of inlier classes below
    node.CALIBRATION = 500
    node.TPR = 0.95
    # Of those the student may answer otherwise than the teacher in so large a share of what lies below the threshold,
    # else the threshold is lowered until it holds (selective risk, Geifman and El-Yaniv, NeurIPS 2017); 1: any
    node.MAX_DISAGREEMENT = 1.0
    # Whether a sample that the student takes for a class that is no inlier class goes to the teacher, too
    node.HAND_ON_RARE = False
    # Inlier classes are those with at least this share of the teacher's answers since learning began: no labels
    node.INLIER_MIN_SHARE = 0.005
    # max_softmax | max_logit | energy | odin | mahalanobis | vim | knn | attention; those of scenekd.outliers that see
    # outliers are refused
    node.SCORE = "max_softmax"
    node.SCORE_OPTIONS = ()  # pairs (option, value) of that score, such as (("temperature", 2.0),) of energy
    node.THRESHOLD = ()  # (value,): this threshold in place of the fitted one
    # Then the student answers, so many samples at a time (0: BATCH_SIZE): the more, the longer the first of them waits,
    # and the more go to the teacher together, which costs less than one by one
    node.ANSWER_BATCH_SIZE = 0
    # A share of its answers is also asked of the teacher; it learns again where they agree
    # in less than AUDIT_AGREEMENT of the last AUDIT_WINDOW
    node.AUDIT_SHARE = 0.05
    node.AUDIT_WINDOW = 100
    node.AUDIT_AGREEMENT = 0.7
    # or where more than GATE_SHARE of the last GATE_WINDOW samples looked unfamiliar; 1: never for that reason
    node.GATE_SHARE = 0.6
    node.GATE_WINDOW = 500
    # Where labels are known: the teacher is asked at the end about what it was not asked, for its own accuracy in the
    # report alone
    node.JUDGE_TEACHER = True
    # Measured after the run, with the final student; neither changes anything that the run learns or answers.
    # Names of outlier scores, of ONLINE.SCORE's list or of those that see outliers (classifier_discrepancy |
    # leave_out_ensemble): each as the gate of the samples answered since the last calibration
    node.COMPARE_SCORES = ()
    # Where teacher and student look, against the objects' masks where the data have some, and against each other
    node.COMPARE_ATTENTION = False
    node.CHECKPOINT_PERIOD = (
        1  # batches between two states of the run; 1: a kill loses the current batch alone
    )
