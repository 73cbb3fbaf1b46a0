"""The block driver: each snapshot a block device with a file system in it, copied on write.

driver.py       the verbs: which device a snapshot has, what is mounted of it
devices.py      the state of each device, written before and after each operation
engine.py       what makes devices: the operations that every engine has
qcow2.py        the engine of qcow2 images
export.py       a process that serves an image, and how it is spoken to
loop.py         loop devices
filesystem.py   ext4 and xfs: made, mounted, grown, frozen
"""
