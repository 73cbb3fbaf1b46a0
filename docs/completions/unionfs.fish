# Completion of unionfs for fish.

function __unionfs_mounts --description 'The mountpoints of unions'
    # mountinfo writes blanks as octal numbers.
    string match --regex --groups-only '^(?:\S+ ){4}(\S+) .* - fuse\.unionfs ' </proc/self/mountinfo |
        string replace --all '\\040' ' '
end

# Completes the last option of a comma-separated list.
function __unionfs_options --description 'Mount options'
    set --local token (commandline --current-token | string replace --regex '^-o' '')
    set --local before (string replace --regex '[^,]*$' '' -- "$token")
    set --local last (string replace --regex '^.*,' '' -- "$token")
    switch "$last"
        case 'lowerdir=*' 'lowerdir+=*' 'upperdir=*' 'workdir=*'
            set --local path (string replace --regex '^.*[=:]' '' -- "$last")
            set --local head (string replace --regex '[^=:]*$' '' -- "$last")
            for directory in (__fish_complete_directories "$path" '')
                echo "$before$head$directory"
            end
        case 'redirect_dir=*'
            printf '%s\n' "$before"'redirect_dir='{on,off,follow}
        case 'passthrough=*'
            printf '%s\n' "$before"'passthrough='{auto,on,off}
        case 'placement=*'
            printf '%s\n' "$before"'placement='{auto,spread,off}
        case 'session=*'
            printf '%s\n' "$before"'session='{auto,device,pyfuse3}
        case '*'
            printf '%s\n' "$before"'lowerdir='\t'lower layers, topmost first' \
                "$before"'lowerdir+='\t'one more lower layer' \
                "$before"'upperdir='\t'layer that takes all changes' \
                "$before"'workdir='\t'empty directory beside upperdir' \
                "$before"'volatile'\t'never sync to the disk' \
                "$before"'fsync='\t'0 is volatile' \
                "$before"'redirect_dir='\t'rename lower directories' \
                "$before"'userxattr'\t'use user.overlay.* attributes' \
                "$before"'squash_to_root'\t'show root as the owner' \
                "$before"'squash_to_uid='\t'show this owner' \
                "$before"'squash_to_gid='\t'show this group' \
                "$before"'uidmapping='\t'show user ids of layers as others' \
                "$before"'gidmapping='\t'show group ids of layers as others' \
                "$before"'xattr_permissions='\t'where owners and modes are kept: 0, 1 or 2' \
                "$before"'static_nlink'\t'directories show one link' \
                "$before"'noacl'\t'no POSIX ACLs' \
                "$before"'noxattrs='\t'1: no extended attributes' \
                "$before"'ino32_t'\t'inode numbers of 32 bits' \
                "$before"'timeout='\t'seconds the kernel may remember names and attributes' \
                "$before"'entry_timeout='\t'the same for names' \
                "$before"'negative_timeout='\t'the same for names that are not there' \
                "$before"'attr_timeout='\t'the same for attributes' \
                "$before"'passthrough='\t'files the kernel reads and writes itself' \
                "$before"'placement='\t'CPUs on which requests are taken' \
                "$before"'session='\t'who serves' \
                "$before"'debug'\t'log every request' \
                "$before"'fsname='\t'name of the source' \
                "$before"{ro,rw,allow_other,noallow_other,allow_root,dev,nodev,suid,nosuid} \
                "$before"{exec,noexec,atime,noatime,strictatime,nodiratime,sync,async,dirsync}
    end
end

function __unionfs_command --description 'Whether the command is one of the arguments'
    contains -- (commandline --tokenize --current-process --cut-at-cursor)[2] $argv
end

function __unionfs_mounting --description 'Whether a union is being mounted'
    not __unionfs_command umount ls diff run snapshot image volume plugin
end

complete --command unionfs --no-files
complete --command unionfs --condition __fish_use_subcommand --arguments mount --description 'Mount a union'
complete --command unionfs --condition __fish_use_subcommand --arguments umount --description 'Unmount it, wait for its daemon'
complete --command unionfs --condition __fish_use_subcommand --arguments ls --description 'List the mounted unions'
complete --command unionfs --condition __fish_use_subcommand --arguments diff --description 'List what the upper layer changes'
complete --command unionfs --condition __fish_use_subcommand --arguments run --description 'Run a command over a fresh layer'
complete --command unionfs --condition __fish_use_subcommand --arguments snapshot --description 'Keep trees on top of one another'
complete --command unionfs --condition __fish_use_subcommand --arguments image --description 'Bring images in and out'
complete --command unionfs --condition __fish_use_subcommand --arguments volume --description 'Keep files that outlive who uses them'
complete --command unionfs --condition __fish_use_subcommand --arguments plugin --description 'Serve container engines by a socket'
complete --command unionfs --short-option h --long-option help --description 'Print a summary'
complete --command unionfs --short-option V --long-option version --description 'Print the version'

complete --command unionfs --condition __unionfs_mounting --short-option o --long-option options --require-parameter --arguments '(__unionfs_options)' --description 'Mount options'
complete --command unionfs --condition __unionfs_mounting --short-option f --long-option foreground --description 'Serve in the foreground'
complete --command unionfs --condition __unionfs_mounting --short-option d --long-option debug --description 'Log every request, in the foreground'
complete --command unionfs --condition __unionfs_mounting --short-option v --long-option verbose --description 'Say what was mounted where'
complete --command unionfs --condition __unionfs_mounting --long-option session --require-parameter --arguments 'auto device pyfuse3' --description 'Who serves'
complete --command unionfs --condition __unionfs_mounting --arguments '(__fish_complete_directories)'

complete --command unionfs --condition '__unionfs_command umount' --short-option l --long-option lazy --description 'Detach it though it is in use'
complete --command unionfs --condition '__unionfs_command umount' --arguments '(__unionfs_mounts)'

complete --command unionfs --condition '__unionfs_command ls diff' --long-option json --description 'Print a JSON array'

complete --command unionfs --condition '__unionfs_command diff' --short-option o --long-option options --require-parameter --arguments '(__unionfs_options)' --description 'Layers'
complete --command unionfs --condition '__unionfs_command diff' --arguments '(__fish_complete_directories)'

function __unionfs_snapshot_verb --description 'Whether the verb of unionfs snapshot is to come'
    test (count (commandline --tokenize --current-process --cut-at-cursor)) -eq 2
    and __unionfs_command snapshot
end

function __unionfs_keys --description 'The keys of snapshots'
    unionfs snapshot ls --json 2>/dev/null | string match --regex --groups-only '^    "key": "(.*)",$'
end

complete --command unionfs --condition __unionfs_snapshot_verb --arguments 'prepare view commit capture mount umount mounts release rm ls info usage diff label cleanup'
complete --command unionfs --condition '__unionfs_command snapshot; and not __unionfs_snapshot_verb' --arguments '(__unionfs_keys) (__fish_complete_directories)'
complete --command unionfs --condition '__unionfs_command snapshot image volume plugin' --long-option root --require-parameter --arguments '(__fish_complete_directories)' --description 'The store'
complete --command unionfs --condition '__unionfs_command snapshot image volume plugin' --long-option driver --require-parameter --arguments overlay --description 'The storage driver'
complete --command unionfs --condition '__unionfs_command snapshot image volume plugin' --long-option storage-opt --require-parameter --description 'Option of the driver'
complete --command unionfs --condition '__unionfs_command snapshot volume' --long-option label --require-parameter --description 'Label'
complete --command unionfs --condition '__unionfs_command snapshot' --long-option size --require-parameter --description 'Limit of the tree'
complete --command unionfs --condition '__unionfs_command snapshot volume' --long-option lazy --short-option l --description 'Detach it though it is in use'
complete --command unionfs --condition '__unionfs_command snapshot image volume' --long-option json --description 'Print JSON'

function __unionfs_image_verb --description 'Whether the verb of unionfs image is to come'
    test (count (commandline --tokenize --current-process --cut-at-cursor)) -eq 2
    and __unionfs_command image
end

complete --command unionfs --condition __unionfs_image_verb --arguments 'import export ls rm history inspect cleanup'
complete --command unionfs --condition '__unionfs_command image; and not __unionfs_image_verb' --force-files --arguments '(unionfs image ls --quiet 2>/dev/null)'
complete --command unionfs --condition '__unionfs_command image' --long-option format --require-parameter --arguments 'oci-archive docker-archive' --description 'What to write'
complete --command unionfs --condition '__unionfs_command image' --long-option compression --require-parameter --arguments 'gzip zstd none' --description 'Of layers'
complete --command unionfs --condition '__unionfs_command image' --short-option q --long-option quiet --description 'No progress, names alone'
complete --command unionfs --condition '__unionfs_command image' --long-option no-trunc --description 'Do not shorten'

function __unionfs_volume_verb --description 'Whether the verb of unionfs volume is to come'
    test (count (commandline --tokenize --current-process --cut-at-cursor)) -eq 2
    and __unionfs_command volume
end

complete --command unionfs --condition __unionfs_volume_verb --arguments 'create inspect ls rm prune mount umount backup restore clone snapshot cleanup'
complete --command unionfs --condition '__unionfs_command volume; and not __unionfs_volume_verb' --force-files --arguments '(unionfs volume ls --quiet 2>/dev/null)'
complete --command unionfs --condition '__unionfs_command volume' --long-option opt --require-parameter --arguments 'type= o= device= size= from=' --description 'Option of the volume'
complete --command unionfs --condition '__unionfs_command volume' --long-option name --require-parameter --description 'Its name'
complete --command unionfs --condition '__unionfs_command volume' --long-option filter --require-parameter --arguments 'dangling= driver= label= label!= name=' --description 'Which'
complete --command unionfs --condition '__unionfs_command volume' --long-option format --require-parameter --arguments 'json table' --description 'How to print'
complete --command unionfs --condition '__unionfs_command volume' --short-option q --long-option quiet --description 'No progress, names alone'
complete --command unionfs --condition '__unionfs_command volume' --long-option force --description 'Do not ask'
complete --command unionfs --condition '__unionfs_command volume' --short-option a --long-option all --description 'All of them'
complete --command unionfs --condition '__unionfs_command volume' --long-option id --require-parameter --description 'Who uses it'
complete --command unionfs --condition '__unionfs_command volume' --long-option options --require-parameter --description 'Mount options'
complete --command unionfs --condition '__unionfs_command volume' --long-option compression --require-parameter --arguments 'gzip zstd none' --description 'Of the archive'

function __unionfs_plugin_verb --description 'Whether the name of the plugin is to come'
    test (count (commandline --tokenize --current-process --cut-at-cursor)) -eq 2
    and __unionfs_command plugin
end

complete --command unionfs --condition __unionfs_plugin_verb --arguments 'volume'
complete --command unionfs --condition '__unionfs_command plugin' --long-option socket --require-parameter --force-files --description 'Where engines ask'

complete --command unionfs --condition '__unionfs_command run' --arguments '(unionfs image ls -q 2>/dev/null) (__fish_complete_path)'
complete --command unionfs --condition '__unionfs_command run' --long-option rm --description 'Remove the layer at the end'
complete --command unionfs --condition '__unionfs_command run' --short-option i --long-option interactive --description 'Standard input is the command\'s'
complete --command unionfs --condition '__unionfs_command run' --short-option t --long-option tty --description 'Give it a terminal'
complete --command unionfs --condition '__unionfs_command run' --short-option d --long-option detach --description 'Print the name and return'
complete --command unionfs --condition '__unionfs_command run' --long-option name --require-parameter --description 'Name of the container'
complete --command unionfs --condition '__unionfs_command run' --short-option v --long-option volume --require-parameter --arguments '(__fish_complete_directories)' --description 'Show a volume or a directory of the host'
complete --command unionfs --condition '__unionfs_command run' --long-option tmpfs --require-parameter --description 'File system in memory'
complete --command unionfs --condition '__unionfs_command run' --long-option mount --require-parameter --description 'Bind, volume or tmpfs'
complete --command unionfs --condition '__unionfs_command run' --short-option e --long-option env --require-parameter --description 'Set a variable'
complete --command unionfs --condition '__unionfs_command run' --short-option w --long-option workdir --require-parameter --description 'Directory to start in'
complete --command unionfs --condition '__unionfs_command run' --short-option u --long-option user --require-parameter --arguments '(__fish_complete_users)' --description 'Whom it runs as'
complete --command unionfs --condition '__unionfs_command run' --long-option entrypoint --require-parameter --description 'Program'
complete --command unionfs --condition '__unionfs_command run' --long-option hostname --require-parameter --description 'Host name'
complete --command unionfs --condition '__unionfs_command run' --long-option read-only --description 'Make the root file system read-only'
complete --command unionfs --condition '__unionfs_command run' --long-option root --require-parameter --arguments '(__fish_complete_directories)' --description 'The store'
complete --command unionfs --condition '__unionfs_command run' --long-option driver --require-parameter --arguments overlay --description 'The storage driver'
complete --command unionfs --condition '__unionfs_command run' --long-option storage-opt --require-parameter --description 'Option of the driver'
