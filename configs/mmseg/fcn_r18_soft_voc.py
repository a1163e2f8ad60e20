# One of MMSegmentation's own networks (FCN on ResNet-18) learns from masks and from a teacher's saved outputs.
# CrossEntropyLoss sees the images that have a mask, SoftLabelCrossEntropy those that have a saved output; with
# train_dataloader.dataset.keep_sem_seg=0.1 nine of ten masks are left out. TEACHER and DISTILL take the keys that
# projects/scenekd/config_defaults.py documents.
#   python tools/train_net.py --config-file configs/mmseg/fcn_r18_soft_voc.py
#   python tools/test.py configs/mmseg/fcn_r18_soft_voc.py output/fcn_r18_soft_voc/model_final.pth
_base_ = "./_base_/fcn_r18_voc.py"

model = dict(
    decode_head=dict(
        loss_decode=[
            dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
            dict(type="SoftLabelCrossEntropy", target_is="logits", temperature=1.0, loss_weight=1.0),
        ],
    ),
)

# That of blitznet_voc.py, with a teacher.
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
work_dir = "output/fcn_r18_soft_voc"
