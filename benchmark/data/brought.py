"""`--dataset KIND:WHERE[@S]`: images that are imported the first time they are named.

    folder:PATH        class folders under train/ and test/ (or val/), or a zip of them
    hf:NAME-or-PATH    of Hugging Face, on the hub or saved to disk, with a column of images and one of class labels
    torchvision:NAME   of torchvision, with images and labels, such as torchvision:FashionMNIST

@S as `--size S` of `cilbench data import`. Files of a folder decide the name of its cache, by their names and what is
in them: other files are another data set, and equal ones have one name on every machine.
"""

import hashlib
import importlib
import inspect
import io
import logging
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from difflib import get_close_matches
from functools import cache as once
from pathlib import Path
from typing import Any

from cilbench.data import cache
from cilbench.data.cards import DatasetError, builtin_cards, unlike_its_twin
from cilbench.data.folders import import_folder
from cilbench.data.sources import open_source
from cilbench.errors import printable
from cilbench.machine_cache import recall, remember

_LOG = logging.getLogger("cilbench")  # what an import says of the images
_TEST_SPLITS = ("test", "validation", "valid", "val")

Example = tuple[str, Any]  # class name; the bytes of an image file, or a Pillow image
Begin = Callable[[], None]  # says that an import has begun, once; called where the source is known to be there


def local_name(asked: str, data_dir: Path) -> str:
    """The name of the cache that `asked` means, built where it is not there yet; a name without a kind is itself.

    Raises DatasetError, one line that says what is allowed.
    """
    kind, colon, rest = asked.partition(":")
    if not colon:
        return asked
    match = re.fullmatch(r"(.+?)(?:@(\d+))?", rest)
    if kind not in _KINDS or match is None:
        raise DatasetError(
            f"--dataset {asked}: allowed are a name (`cilbench data list` shows them), folder:PATH, hf:NAME and "
            "torchvision:NAME, where the images are of several sizes with @S behind it"
        )
    where, size = match[1], int(match[2]) if match[2] else None
    if kind == "torchvision" and not size and where.lower() in builtin_cards():
        return where.lower()
    name = _cache_name(kind, where, size)
    if name not in cache.cached_names(data_dir):
        begin = once(lambda: _note(f"importing {kind}:{where} as {name}, into {data_dir}"))
        try:
            _KINDS[kind](name, where, size, data_dir, begin)
        except DatasetError as error:
            said = str(error).replace("add --size S", f"write {asked}@S")
            raise DatasetError(f"--dataset {asked}: {said}") from error
        if differs := unlike_its_twin(cache.card(name, data_dir)):
            _note(differs)
    return name


def _note(line: str) -> None:
    _LOG.warning(printable(line))


def _cache_name(kind: str, where: str, size: int | None) -> str:
    path = Path(where).expanduser()
    named = path.resolve().name if kind == "folder" or path.is_dir() else where
    slug = re.sub(r"[^a-z0-9]+", "-", named.removesuffix(".zip").lower()).strip("-")[:40] or "images"
    identity = [kind, size, _files_of(path) if kind == "folder" or path.is_dir() else where]
    return f"{slug}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:8]}"


def _files_of(path: Path) -> list[tuple[str, int]]:
    """Every file with its size and a checksum of all of them, of a zip each with its own. Raises DatasetError where
    there is neither.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        found = [(p.relative_to(path).as_posix(), p.stat()) for p in files]
        sizes = [(name, stat.st_size) for name, stat in found]
        times = hashlib.sha256(repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]).encode())
        return [*sizes, ("", _contents(files, f"{path.resolve()} {times.hexdigest()}", sum(size for _, size in sizes)))]
    with open_source(path), zipfile.ZipFile(path) as archive:
        return sorted((member.filename, member.CRC) for member in archive.infolist())


def _contents(files: list[Path], key: str, size_bytes: int) -> int:
    """CRC-32 of the CRC-32s of all files. Many bytes are read again only if a size or a time has changed (`key`)."""
    large = size_bytes > cache.HASHED_AT_LOAD_BYTES
    if large and (known := recall("folders", key)):
        return int(known["crc32"])
    with ThreadPoolExecutor() as readers:
        crc = zlib.crc32(repr(list(readers.map(_crc, files))).encode())
    if large:
        remember("folders", key, {"crc32": crc})
    return crc


def _crc(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            found = zlib.crc32(block, found)
    return found


def _bring_folder(name: str, where: str, size: int | None, data_dir: Path, begin: Begin) -> None:
    def note(line: str) -> None:
        begin()
        _note(line)

    import_folder(name, Path(where).expanduser(), data_dir, size, lambda done, total: begin(), note=note)


def _bring_hugging_face(name: str, where: str, size: int | None, data_dir: Path, begin: Begin) -> None:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise DatasetError("needs `pip install 'cilbench[hf]'`") from error
    path = Path(where).expanduser()
    on_disk = (path / "dataset_dict.json").is_file()
    try:
        if on_disk:
            found = datasets.load_from_disk(str(path))
        else:
            datasets.load_dataset_builder(where)  # is there such a data set? Its images come with the next line
            begin()
            found = datasets.load_dataset(where)
    except Exception as error:  # a hub, a network, pyarrow: nearly anything
        raise DatasetError(f"cannot be had ({_reason(error)})") from error
    test = next((split for split in _TEST_SPLITS if split in found), None)
    if "train" not in found or test is None:
        raise DatasetError(f"has the splits {', '.join(found)}; needed are train and test (or validation)")
    features = found["train"].features
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images or not labels:
        raise DatasetError(f"has the columns {', '.join(features)}; needed are one of images and one of class labels")
    label = max(labels, key=lambda column: len(features[column].names))
    if len(images) + len(labels) > 2:
        _note(f"{where}: images are those of {images[0]}, classes those of {label}")

    def examples(split: str) -> Iterator[Example]:
        encoded = found[split].cast_column(images[0], datasets.Image(decode=False))
        for row in encoded.select_columns([images[0], label]):
            file = row[images[0]]
            yield features[label].names[row[label]], file["bytes"] or Path(file["path"]).read_bytes()

    begin()
    _import({"train": examples("train"), "test": examples(test)}, name, size, data_dir)


def _bring_torchvision(name: str, where: str, size: int | None, data_dir: Path, begin: Begin) -> None:
    from torchvision import datasets

    kind: Any = getattr(datasets, where, None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        near = get_close_matches(where, datasets.__all__, cutoff=0.4) or ["FashionMNIST", "Flowers102", "GTSRB"]
        raise DatasetError(f"is no data set of torchvision; nearest are {', '.join(near)}")
    accepts = inspect.signature(kind).parameters
    if "train" in accepts:
        choices: Mapping[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in accepts:
        choices = {split: {"split": split} for split in ("train", "test")}
    else:
        raise DatasetError("is not split into training and test images: give class folders with folder:PATH")
    with (
        tempfile.TemporaryDirectory(prefix=".torchvision.", dir=_made(data_dir)) as raw,
        redirect_stdout(io.StringIO()),
    ):
        begin()
        download = {"download": True} if "download" in accepts else {}
        try:
            make: Callable[..., Any] = kind
            parts = {split: make(raw, **chosen, **download) for split, chosen in choices.items()}
        except Exception as error:
            raise DatasetError(f"cannot be had ({_reason(error)}): or give class folders with folder:PATH") from error
        classes = getattr(parts["train"], "classes", None)

        def examples(split: str) -> Iterator[Example]:
            for image, label in (parts[split][index] for index in range(len(parts[split]))):
                if not isinstance(label, int):
                    raise DatasetError("its labels are not classes, one an image")
                yield classes[label] if classes else f"{label:04d}", image

        _import({split: examples(split) for split in parts}, name, size, data_dir)


def _import(splits: Mapping[str, Iterable[Example]], name: str, size: int | None, data_dir: Path) -> None:
    """Lay examples out as class folders, and import those: what a folder is checked for is checked here."""
    folders: dict[str, str] = {}  # class → its folder: no two share one, as a/b and a_b would
    with tempfile.TemporaryDirectory(prefix=".brought.", dir=_made(data_dir)) as work:
        for split, examples in splits.items():
            for number, (label, image) in enumerate(examples):
                if label not in folders:
                    folder_name = label.replace("/", "_")
                    while folder_name in folders.values():
                        folder_name += "_"
                    folders[label] = folder_name
                folder = Path(work, split, folders[label])
                folder.mkdir(parents=True, exist_ok=True)
                if isinstance(image, bytes):
                    (folder / f"{number:08d}.png").write_bytes(image)  # Pillow goes by what is in it
                else:
                    image.save(folder / f"{number:08d}.png")
        try:
            import_folder(name, Path(work), data_dir, size, note=_note)
        except DatasetError as error:
            raise DatasetError(str(error).replace(f"{work}: ", "").replace(f"{work} ", "")) from error


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written: {error.strerror}; --data-dir DIR chooses another") from error
    return folder


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.150}"


_KINDS: Mapping[str, Callable[[str, str, int | None, Path, Begin], None]] = {
    "folder": _bring_folder,
    "hf": _bring_hugging_face,
    "torchvision": _bring_torchvision,
}
