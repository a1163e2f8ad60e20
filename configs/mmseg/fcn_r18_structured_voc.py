# FCN on ResNet-18 learns from masks and from DeepLabV3, as fcn_r18_online_voc.py does, by a list of distillation
# losses on logits and on layers of both networks: those of Liu et al., CVPR 2019, with the weights of their code for
# a batch of one image, and channel-wise distillation (Shu et al., ICCV 2021) of the trunks' last layers.
# docs/components.md has the losses and their keys.
#   python tools/train_net.py --config-file configs/mmseg/fcn_r18_structured_voc.py
#   python tools/test.py configs/mmseg/fcn_r18_structured_voc.py output/fcn_r18_structured_voc/model_final.pth
_base_ = "./fcn_r18_online_voc.py"

model = dict(
    distill=[
        dict(TYPE="pixel", WEIGHT=10.0),
        dict(TYPE="pair", WEIGHT=0.5, SCALE=0.0625),  # of the image's side: half of a stride of 8
        dict(TYPE="holistic", WEIGHT=0.1),
        dict(
            TYPE="cwd",
            STUDENT="backbone.layer4",
            TEACHER="backbone.layer4",
            WEIGHT=50.0,
            SCHEDULE="cosine",
            WARMUP=1000,
        ),
    ],
    decode_head=dict(loss_decode=[dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True)]),
)
work_dir = "output/fcn_r18_structured_voc"
