# One of MMSegmentation's own networks (FCN on ResNet-18) learns from masks and from a teacher's saved outputs.
# CrossEntropyLoss sees the images that have a mask, SoftLabelCrossEntropy those that have a saved output; with
# train_dataloader.dataset.keep_sem_seg=0.1 nine of ten masks are left out. TEACHER and DISTILL take the keys that
# projects/scenekd/config_defaults.py documents.
#   python tools/train_net.py --config-file configs/mmseg/fcn_r18_soft_voc.py
#   python tools/test.py configs/mmseg/fcn_r18_soft_voc.py output/fcn_r18_soft_voc/model_final.pth
_base_ = "./blitznet_voc.py"

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
        loss_decode=[
            dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
            dict(type="SoftLabelCrossEntropy", target_is="logits", temperature=1.0, loss_weight=1.0),
        ],
    ),
    test_cfg=dict(mode="whole"),
)

train_pipeline = [
    {{_base_.load_image}},
    dict(type="SceneKDLoadAnnotations"),
    dict(
        type="SceneKDLoadTeacher",
        teacher=dict(
            SEGMENTATION=dict(TYPE="folder", WEIGHTS="datasets/VOCdevkit/VOC2012/TeacherSegmentation")
        ),
        distill=dict(SEGMENTATION=dict(POLICY="combined", TARGET="logits")),
    ),
    {{_base_.geometry}},
    dict(type="PhotoMetricDistortion"),
    dict(type="SceneKDPackInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = [dict(type="IoUMetric", iou_metrics=["mIoU"])]
test_evaluator = val_evaluator
work_dir = "output/fcn_r18_soft_voc"
