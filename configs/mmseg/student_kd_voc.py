# fcn_kd's student (FCN on ResNet-18) under MMSegmentation's own data, transforms, loop, hooks and IoUMetric: it learns
# from masks and from torchvision's FCN on ResNet-101, which is asked for the same augmented batch, by Hinton's loss on
# the logits and by channel-wise distillation of the trunks' last layers.
#   python tools/train_net.py --config-file configs/mmseg/student_kd_voc.py
#   python tools/test.py configs/mmseg/student_kd_voc.py output/student_kd_voc/model_final.pth
# The teacher is needed in training alone. Without teacher and distill: the same student by cross-entropy.
_base_ = "./blitznet_voc.py"

model = dict(
    _delete_=True,
    type="SceneKDStudent",
    network="fcn_resnet18",
    num_classes=20,  # without background; another data set than VOC: with classes=(...), too
    output_stride=8,
    teacher="torchvision://fcn_resnet101",  # or the keys of TEACHER.SEGMENTATION, dict(TYPE=..., CLASS_MAP=...)
    distill=[
        dict(TYPE="hinton", ALPHA=0.9, TEMPERATURE=20.0),
        dict(
            TYPE="cwd", STUDENT="backbone.layer4", TEACHER="backbone.layer4", WEIGHT=50.0, SCHEDULE="cosine"
        ),
    ],
)

val_evaluator = [dict(type="IoUMetric", iou_metrics=["mIoU"])]
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(_delete_=True, type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [dict(type="PolyLR", by_epoch=False, power=0.9, eta_min=1e-4, begin=0, end=20000)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=20000, val_interval=2000)
work_dir = "output/student_kd_voc"
