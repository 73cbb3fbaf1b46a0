from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.errors import MountError, UsageError
from unionfs.options import (
    IdRange,
    MountOptions,
    format_options,
    require_layers,
    with_defaults,
)
from unionfs.optwords import parse_options

PATHS = st.binary(min_size=1, max_size=12).filter(lambda path: b"\0" not in path)
# An argument of a process is bytes; a SOURCE comes as one.
TEXTS = PATHS.map(lambda name: name.decode(errors="surrogateescape"))
IDS = st.none() | st.integers(0, 2**32 - 2)
RANGES = st.lists(
    st.builds(IdRange, *(st.integers(0, 2**31 - 1) for _ in range(3))), max_size=3
).map(tuple)


@st.composite
def mount_options(draw: st.DrawFn) -> MountOptions:
    words = draw(
        st.tuples(
            st.sampled_from([None, "allow_other", "noallow_other", "allow_root"]),
            st.sampled_from([None, "dev", "nodev"]),
            st.sampled_from([None, "suid", "nosuid"]),
            st.sampled_from([None, "atime", "noatime", "relatime"]),
        )
    )
    return MountOptions(
        lowerdirs=tuple(draw(st.lists(PATHS, max_size=4))),
        upperdir=draw(st.none() | PATHS),
        workdir=draw(st.none() | PATHS),
        read_only=draw(st.booleans()),
        volatile=draw(st.booleans()),
        redirect_dir=draw(st.booleans()),
        userxattr=draw(st.booleans()),
        squash_to_uid=draw(IDS),
        squash_to_gid=draw(IDS),
        uidmapping=draw(RANGES),
        gidmapping=draw(RANGES),
        xattr_permissions=draw(st.integers(0, 2)),
        static_nlink=draw(st.booleans()),
        noacl=draw(st.booleans()),
        noxattrs=draw(st.booleans()),
        ino32_t=draw(st.booleans()),
        timeout=draw(st.floats(0, 1e12)),
        session=draw(st.sampled_from(["auto", "pyfuse3", "device"])),
        debug=draw(st.booleans()),
        fsname=draw(TEXTS),
        fuse_options=tuple(word for word in words if word is not None),
    )


def parse(*strings: str) -> MountOptions:
    return parse_options(strings).options


@given(mount_options())
def test_what_is_written_reads_the_same(options: MountOptions) -> None:
    text = format_options(options)
    assert parse(text) == options
    assert format_options(parse(text)) == text


@given(mount_options(), st.data())
def test_it_does_not_matter_how_options_are_spread_over_strings(
    options: MountOptions, data: st.DataObject
) -> None:
    parts = list(_parts(options))
    cut = data.draw(st.integers(0, len(parts)))
    assert parse(",".join(parts[:cut]) + ",", "," + ",".join(parts[cut:])) == options


def _parts(options: MountOptions) -> list[str]:
    """Each option in a string of its own, by writing it alone."""
    default = MountOptions()
    parts = [
        format_options(default._replace(**{name: getattr(options, name)}))
        for name in MountOptions._fields
        if name != "fuse_options"
    ]
    return [part for part in [*parts, *options.fuse_options] if part]


def test_what_overlayfs_and_engines_send() -> None:
    options = parse(
        r'lowerdir=/l/A\:1:/l/B\,2:rel/../C,upperdir=/u\,x,workdir="/w,y",,rw,'
        r'context="system_u:object_r:container_file_t:s0:c1,c2",index=on,xino=auto,'
        r"redirect_dir=on,metacopy=off,nfs_export=off,private,"
    )
    assert options.lowerdirs == (b"/l/A:1", b"/l/B,2", b"rel/../C")
    assert options.upperdir == b"/u,x"
    assert options.workdir == b"/w,y"
    assert not options.read_only


def test_bytes_that_are_no_text_stay_what_they_are() -> None:
    assert parse("lowerdir=/\udcff\udc80").lowerdirs == (b"/\xff\x80",)


def test_layers_can_be_added_one_by_one() -> None:
    assert parse("lowerdir=/a", "lowerdir+=/b:c", "lowerdir+=/d").lowerdirs == (
        b"/a",
        b"/b:c",
        b"/d",
    )


def test_the_last_of_several_counts() -> None:
    options = parse("lowerdir=/a,upperdir=/u,ro,volatile", "upperdir=/v,rw,fsync=1,dev,nodev")
    assert options.upperdir == b"/v"
    assert not options.read_only
    assert not options.volatile
    assert options.fuse_options == ("nodev",)
    assert parse("squash_to_uid=7,squash_to_root").squash_to_uid == 7
    assert parse("squash_to_uid=7,squash_to_root").squash_to_gid == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("volatile", {"volatile": True}),
        ("fsync=0", {"volatile": True}),
        ("fsync=volatile", {"volatile": True}),
        ("fsync=1", {"volatile": False}),
        ("redirect_dir=off", {"redirect_dir": False}),
        ("redirect_dir=follow", {"redirect_dir": False}),
        ("redirect_dir=on", {"redirect_dir": True}),
        ("userxattr", {"userxattr": True}),
        ("timeout=0", {"timeout": 0.0}),
        ("timeout=1.5", {"timeout": 1.5}),
        ("session=device", {"session": "device"}),
        ("debug", {"debug": True}),
        ("fsname=a\\,b", {"fsname": "a,b"}),
        ("sync=0", {"volatile": True}),
        ("uidmapping=:0:100000:65536", {"uidmapping": ((0, 100000, 65536),)}),
        ("gidmapping=0:1:5:9:7:1", {"gidmapping": ((0, 1, 5), (9, 7, 1))}),
        ("uidmapping=0:0:4294967295", {"uidmapping": ((0, 0, 4294967295),)}),
        ("xattr_permissions=2", {"xattr_permissions": 2}),
        ("static_nlink,noacl,ino32_t", {"static_nlink": True, "noacl": True, "ino32_t": True}),
        ("noxattrs=1", {"noxattrs": True}),
        ("noxattrs=0", {}),
    ],
)
def test_each_option_of_ours(text: str, expected: dict[str, object]) -> None:
    assert parse(text) == MountOptions()._replace(**expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "auto,noauto,user,nouser,users,user=joe,owner,group,_netdev,nofail,defaults",
        "x-systemd.automount,x-foo=bar,X-mount.mkdir=0755,comment=text",
        "private,shared,slave,unbindable,rprivate,rshared,rslave,runbindable",
        "context=a,fscontext=b,defcontext=c,rootcontext=d,seclabel",
        "async,exec,diratime,relatime,default_permissions,lazytime",
        "xattr_permissions=0,verity=off,xino=off",
        "clone_fd,max_idle_threads=5,max_threads=1,threaded=1,writeback=0,fast_ino=1,max_write=9",
    ],
)
def test_words_of_others_change_nothing(text: str) -> None:
    parsed = parse_options([text])
    assert parsed.options._replace(fuse_options=()) == MountOptions()
    assert parsed.ignored == ()


@pytest.mark.parametrize(
    ("word", "known"),
    [("noatim", "noatime"), ("nosiud", "nosuid"), ("alow_othr", "allow_other"), ("debgu", "debug")],
)
def test_an_unknown_option_is_refused_with_the_known_one_that_is_near(
    word: str, known: str
) -> None:
    with pytest.raises(UsageError, match=f"^{word}: unknown option, the nearest .* is {known}$"):
        parse(word)


@pytest.mark.parametrize("word", ["wibble=3", "bogus", "x", "rx", "plugins=x:y"])
def test_of_others_none_is_named(word: str) -> None:
    with pytest.raises(UsageError, match=f"^{word}: unknown option$"):
        parse(word)


def test_or_passed_over_with_a_warning() -> None:
    parsed = parse_options(["lowerdir=/a,bogus,plugins=x:y,metacopy=on,index=off"], tolerant=True)
    assert parsed.options.lowerdirs == (b"/a",)
    assert [line.split(":")[0] for line in parsed.ignored] == [
        "bogus",
        "plugins=x",
        "metacopy=on",
        "index=off",
    ]


@pytest.mark.parametrize(
    "word",
    [
        "upperdri=/u",
        "uperdir=/u",
        "lowerdirs=/l",
        "workdirr=/w",
        "vollatile",
        "squash_to_uidd=0",
        "squash_touid=0",
        "timeuot=3",
        "uidmaping=0:0:1",
        "sesion=auto",
        "Upperdir=/u",
        "upper_dir=/u",
    ],
)
@pytest.mark.parametrize("tolerant", [False, True])
def test_a_slip_is_refused_in_every_form(word: str, tolerant: bool) -> None:
    with pytest.raises(UsageError, match="the nearest known one is"):
        parse_options(["lowerdir=/a", word], tolerant=tolerant)


def test_as_fuse_overlayfs_has_it() -> None:
    """What is unknown is given back, whatever it resembles; empty layers are passed over."""
    text = "lowerdir=:/a::/b:,upperdri=/u,volatile=1,timeout,,metacopy=on,private,xino=off"
    parsed = parse_options([text], as_fuse_overlayfs=True)
    assert parsed.options == MountOptions(lowerdirs=(b"/a", b"/b"))
    assert parsed.ignored == ("upperdri=/u", "volatile=1", "timeout", "metacopy=on")


@pytest.mark.parametrize(
    "text",
    [
        "lowerdir",
        "lowerdir=",
        "lowerdir=/a::/data",
        "lowerdir=:/a",
        "lowerdir=/a:",
        "upperdir=",
        "volatile=1",
        "userxattr=on",
        "redirect_dir",
        "redirect_dir=nofollow",
        "redirect_dir=ON",
        "fsync=2",
        "timeout=soon",
        "timeout=-1",
        "timeout=nan",
        "timeout=inf",
        "squash_to_uid=root",
        "squash_to_uid=-1",
        "squash_to_gid=4294967295",
        "squash_to_gid=²",
        "uidmapping=0:1000",
        "gidmapping=",
        "gidmapping=0:x:1",
        "uidmapping=0:-1:1",
        "uidmapping=0:4294967295:1",
        "xattr_permissions=3",
        "noxattrs=2",
        "noxattrs",
        "noacl=1",
    ],
)
@pytest.mark.parametrize("tolerant", [False, True])
def test_bad_values_are_refused_in_every_form(text: str, tolerant: bool) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options([text], tolerant=tolerant)
    assert str(caught.value).startswith(text.partition("=")[0])
    assert "\n" not in str(caught.value)


def test_remount_is_told_to_the_caller() -> None:
    assert parse_options(["remount,ro"]).remount


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("upperdir=/u,workdir=/w", "lowerdir= is missing"),
        ("", "lowerdir= is missing"),
        ("lowerdir=/a,upperdir=/u", "upperdir=/u: workdir= is missing"),
    ],
)
def test_what_a_union_needs(text: str, missing: str) -> None:
    with pytest.raises(UsageError) as caught:
        require_layers(parse(text))
    assert str(caught.value) == missing


@pytest.mark.parametrize("text", ["lowerdir=/a", "lowerdir=/a,workdir=/w"])
def test_what_is_enough(text: str) -> None:
    require_layers(parse(text))


def fuse_words(text: str, *, privileged: bool = True, user_allow_other: bool = False) -> set[str]:
    options = with_defaults(
        parse(text), privileged=privileged, user_allow_other=user_allow_other
    ).fuse_options
    assert len(options) == len(set(options))
    return set(options)


WRITABLE = "lowerdir=/a,upperdir=/u,workdir=/w"


def test_what_root_mounts_serves_all_like_an_overlayfs() -> None:
    usual = {"default_permissions", "allow_other", "dev", "suid", "noatime"}
    assert fuse_words(WRITABLE) == usual
    assert fuse_words(f"{WRITABLE},noallow_other") == usual - {"allow_other"}
    assert fuse_words(f"{WRITABLE},allow_root") == usual - {"allow_other"}
    assert fuse_words(f"{WRITABLE},nodev,nosuid,noexec") == (usual - {"dev", "suid"}) | {
        "nodev",
        "nosuid",
        "noexec",
    }
    assert fuse_words(f"{WRITABLE},relatime") == usual - {"noatime"}
    assert fuse_words("lowerdir=/a") == usual | {"ro"}
    assert fuse_words(f"{WRITABLE},ro") == usual | {"ro"}


def test_what_a_user_mounts_serves_that_user() -> None:
    assert fuse_words(f"{WRITABLE},dev,suid", privileged=False) == {"default_permissions"}
    assert fuse_words(f"{WRITABLE},noatime", privileged=False) == {"default_permissions", "noatime"}


@pytest.mark.parametrize("word", ["allow_other", "allow_root"])
def test_and_others_where_the_machine_lets_it(word: str) -> None:
    text = f"{WRITABLE},{word}"
    words = fuse_words(text, privileged=False, user_allow_other=True)
    assert words == {"default_permissions", word}
    with pytest.raises(MountError, match=r"user_allow_other in /etc/fuse\.conf"):
        fuse_words(text, privileged=False)


@given(mount_options(), st.booleans())
def test_the_words_for_fuse_never_contradict_each_other(
    options: MountOptions, privileged: bool
) -> None:
    words = set(with_defaults(options, privileged=privileged, user_allow_other=True).fuse_options)
    for word in ("dev", "suid", "exec"):
        assert not {word, f"no{word}"} <= words
    assert "default_permissions" in words
    assert ("ro" in words) == (options.read_only or options.upperdir is None)
