"""Turn --data into a folder of pictures: drawn, downloaded and unpacked, or simply there."""

import gzip
import hashlib
import tarfile
import tempfile
import zlib
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlparse

from pictures import UsageError, progress


def locate(data: str, drawn: Path, seed: int) -> Path:
    """Return the folder that --data means, drawing ("sample", into `drawn`) or downloading it if need be.

    Raises UsageError if it means nothing, OSError if a download fails.
    """
    if data == "sample":
        from sample import draw

        return draw(drawn, seed=seed)
    if data.startswith(("http://", "https://")):
        return download(data)
    if (folder := Path(data).expanduser()).is_dir():
        return folder
    from fastai.data.external import URLs

    names = [name for name, url in vars(URLs).items() if str(url).endswith(".tgz")]
    if data.upper() in names:
        return download(getattr(URLs, data.upper()))
    near = get_close_matches(data.upper(), names) or ["PETS", "FLOWERS", "IMAGENETTE_160"]
    raise UsageError(
        f"--data {data}: there is no such folder, and no such fastai dataset (did you mean "
        f"{', '.join(near).lower()}?)"
    )


def download(url: str) -> Path:
    """Download and unpack the archive `url`, once, into fastai's cache of datasets; return its pictures.

    It is the folder that untar_data would use, but untar_data lets an archive write anywhere on the disk.
    Raises OSError.
    """
    import fastai.data
    from fastai.data.external import URLs, fastai_cfg
    from fastdownload import FastDownload

    cache = FastDownload(fastai_cfg(), module=fastai.data, base="~/.fastai")
    name = Path(urlparse(url).path).name
    if url not in vars(URLs).values():
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    folder = cache.data_path(arch=Path(name))
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Unpacked beside its place and moved there whole: a failure leaves nothing that looks complete.
        with tempfile.TemporaryDirectory(dir=folder.parent) as tmp:
            archive = save(url, Path(tmp) / "archive")
            if not cache.check(url, archive):
                raise OSError(f"{url} did not send the archive that fastai knows; try again later")
            unpack(archive, Path(tmp) / "unpacked", url).rename(folder)
    return folder / "images" if (folder / "images").is_dir() else folder


def save(url: str, file: Path) -> Path:
    """Write what `url` answers to `file` and return it. Raises OSError."""
    import requests

    print(f"downloading {url}", flush=True)
    try:
        with requests.get(url, stream=True, timeout=30) as answer, file.open("wb") as out:
            answer.raise_for_status()
            megabytes = -(-int(answer.headers.get("Content-Length", 0)) // 2**20) or None
            for block in progress(answer.iter_content(2**20), megabytes, "MB"):
                out.write(block)
    except requests.RequestException as error:
        answer = error.response
        reason = type(error).__name__ if answer is None else f"{answer.status_code} {answer.reason}"
        raise OSError(
            f"could not download {url} ({reason}); check the address and the network and try again, "
            "or give --data a folder"
        ) from error
    return file


def unpack(archive: Path, folder: Path, url: str) -> Path:
    """Unpack a tar archive into `folder`; return its only folder if it has just one, else `folder`."""
    if not hasattr(tarfile, "data_filter"):
        raise OSError(
            "this Python unpacks archives unsafely; update to 3.11.4 or later, or unpack it yourself"
        )
    folder.mkdir()
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = str(error).partition(":\n")[0]
        raise OSError(f"{url} is not a .tgz archive that can be unpacked ({reason})") from error
    children = list(folder.iterdir())
    return children[0] if len(children) == 1 and children[0].is_dir() else folder
