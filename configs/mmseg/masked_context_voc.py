# blindnet's masked-context classifier under MMEngine's own runner: a pipeline gives whole pictures with boxes and
# classes; the network hides one object of each in training, and every object in turn in evaluation.
#   python tools/train_net.py --config-file configs/mmseg/masked_context_voc.py
#   python tools/test.py configs/mmseg/masked_context_voc.py output/masked_context_voc/model_final.pth
# Any data set does whose samples have gt_instances with bboxes (pixels of the network's input) and labels.
_base_ = "./blitznet_voc.py"

model = dict(
    _delete_=True,
    type="SceneKDMaskedContext",
    num_classes=20,
    trunk="resnet18",  # the keys of MODEL.BLINDNET in lower case
    pretrained="torchvision",
    mask=dict(shapes=("box",), fill="zero", max_area=0.5),  # the keys of MODEL.BLINDNET.MASK in lower case
)

train_dataloader = dict(batch_size=64, dataset=dict(names=("voc2012_main_train",)))
# Labels move with the image, since objects are hidden on the network's input.
test_pipeline = [
    {{_base_.load_image}},
    dict(type="SceneKDLoadAnnotations"),
    dict(
        type="SceneKDGeometry",
        transforms=[dict(type="Resize", scale=({{_base_.size}}, {{_base_.size}}), keep_ratio=False)],
    ),
    dict(type="SceneKDPackInputs"),
]
val_dataloader = dict(dataset=dict(names=("voc2012_main_val",), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type="SceneKDHiddenObjectMetric")
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=2e-4, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", by_epoch=False, start_factor=0.1, begin=0, end=500),
    dict(type="CosineAnnealingLR", by_epoch=False, eta_min=0, begin=500, end=10000),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=10000, val_interval=2000)
work_dir = "output/masked_context_voc"
