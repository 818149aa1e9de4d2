"""What `trainer evaluate` measures: values in, JSON numbers out; what cannot be measured says why (`skipped`).

subject         a run and the images that it is judged on, encoded once
networks        VGG19, LPIPS and Inception, from files, the hub cache or a download
reconstruction  PSNR, SSIM, LPIPS, VGG19 distances
generation      Fréchet distances of generated images: FID, and on VGG19
encoding        KL, active units, the aggregate posterior against N(0, I)
prediction      attributes read off mu by linear models
vectors         correlation of attribute vectors, t-SNE, interpolations
edit*           edits as an image classifier sees them
album, plate    the figures
report          report.html
"""
