"""What `trainer evaluate` measures: values in, JSON numbers out; what cannot be measured says why (`skipped`).

evaluate        the order of the measures, and what is written
options         how to judge
encoded_run     a run and the images that it is judged on, encoded once
networks        VGG19, LPIPS and Inception, from files, the hub cache or a download, or why there are none
classifier      sees attributes in images; trained on the data, never on latents
identity        face recognition
reconstruction  PSNR, SSIM, LPIPS, VGG19 distances
generation      Fréchet distances, precision and recall of generated images: FID, on VGG19, on faces
latent_space    KL, active units, the aggregate posterior against N(0, I), correlation of attribute vectors, t-SNE
prediction      attributes read off mu by linear models
edits           edits as the classifier sees them
figures         the pictures of a report, made of `grids` of faces and `charts`
report          report.html
"""
