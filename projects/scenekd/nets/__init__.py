"""Parts of networks that several systems build on: trunks, normalisation, weight files of other projects."""
