# FCN on ResNet-18 learns from masks and from DeepLabV3 on ResNet-50, which is asked for the same augmented batch.
#   python tools/train_net.py --config-file configs/mmseg/fcn_r18_online_voc.py
#   python tools/test.py configs/mmseg/fcn_r18_online_voc.py output/fcn_r18_online_voc/model_final.pth
# The teacher is needed in training alone. Other teachers:
#   any MMSegmentation config   dict(config="deeplabv3plus_r101.py", checkpoint="deeplabv3plus_r101.pth")
#   a SceneKD checkpoint        dict(checkpoint="output/blitznet300/model_final.pth")
_base_ = "./_base_/fcn_r18_voc.py"

model = dict(
    classes="voc",  # another data set: its names, background first
    teacher=dict(checkpoint="torchvision://deeplabv3_resnet50"),
    distill=[dict(type="SceneKDHintonLoss", temperature=4.0, alpha=0.5)],
    decode_head=dict(loss_decode=[dict(type="CrossEntropyLoss", loss_weight=0.5, avg_non_ignore=True)]),
)

work_dir = "output/fcn_r18_online_voc"
