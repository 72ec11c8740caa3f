# The image that critest pulls by digest: what its source names, and what the stand-in
# has. build-critest-images.sh checks the second.
critest_digest_original=9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf
critest_digest=d1df887e77e482e806221a1586a1c28534e37f4a5504c5b917e1ca44604d9b01
