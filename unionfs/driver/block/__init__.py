"""The block driver: each snapshot a block device with a file system in it, copied on write.

- `driver`: the verbs; which device a snapshot has, what is mounted of it;
- `devices`, `locks`: the state of each device, written before and after each operation;
- `engine`: what makes devices, the operations that every engine has;
- `qcow2`: the engine of qcow2 images, with `export`, a process that serves one, and `loop`;
- `thin`: the engine of dm-thin, with `pool`, where its devices are;
- `filesystem`, `blockdev`: ext4 and xfs, made, mounted, grown, frozen;
"""
