# One of MMSegmentation's own networks (FCN on ResNet-18) in place of BlitzNet, from masks alone; data, transforms and
# schedule are those of blitznet_voc.py. What learns from a teacher begins here.
_base_ = "../blitznet_voc.py"

model = dict(
    _delete_=True,
    type="SceneKDEncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(300, 300),
        pad_val=0,
        seg_pad_val=255,
    ),
    pretrained="torchvision://resnet18",
    backbone=dict(type="ResNet", depth=18, norm_cfg=dict(type="BN"), style="pytorch"),
    decode_head=dict(
        type="FCNHead",
        in_channels=512,
        in_index=3,
        channels=128,
        num_convs=1,
        num_classes=21,
        norm_cfg=dict(type="BN"),
        loss_decode=[dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True)],
    ),
    test_cfg=dict(mode="whole"),
)

val_evaluator = [dict(type="IoUMetric", iou_metrics=["mIoU"])]
test_evaluator = val_evaluator
