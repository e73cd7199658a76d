"""Turn --data into a folder of pictures: generate, download and unpack them, or use a folder as it is."""

import gzip
import hashlib
import tarfile
import tempfile
import zlib
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlparse

from pictures import UsageError, progress


def locate(data: str, generated: Path, seed: int) -> Path:
    """Return the folder that --data means; "sample" generates pictures in the folder `generated`.

    Raises UsageError if there is no such folder or dataset, OSError if a download fails.
    """
    if data == "sample":
        from synthetic_pets import draw

        return draw(generated, seed=seed)
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
    """Download and unpack the archive `url`, once, into fastai's cache; return the folder with its pictures.

    The folder is the one that fastai's `untar_data` would use. `untar_data` itself is not called, because it
    unpacks without a filter: an archive could write anywhere on the disk. Raises OSError.
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
        # Unpack in a temporary folder, then rename it: a failure leaves no half dataset in the cache.
        with tempfile.TemporaryDirectory(dir=folder.parent) as tmp:
            archive = save(url, Path(tmp) / "archive")
            if not cache.check(url, archive):
                raise OSError(f"{url} did not send the archive that fastai knows; try again later")
            unpack(archive, Path(tmp) / "unpacked", url).rename(folder)
    return folder / "images" if (folder / "images").is_dir() else folder


def save(url: str, file: Path) -> Path:
    """Download `url` to `file` and return `file`. Raises OSError."""
    import requests

    print(f"downloading {url}", flush=True)
    try:
        with requests.get(url, stream=True, timeout=30) as response, file.open("wb") as out:
            response.raise_for_status()
            megabytes = -(-int(response.headers.get("Content-Length", 0)) // 2**20) or None
            for block in progress(response.iter_content(2**20), megabytes, "MB"):
                out.write(block)
    except requests.RequestException as error:
        refusal = error.response
        reason = type(error).__name__ if refusal is None else f"{refusal.status_code} {refusal.reason}"
        raise OSError(
            f"could not download {url} ({reason}); check the address and the network and try again, "
            "or give --data a folder"
        ) from error
    return file


def unpack(archive: Path, folder: Path, url: str) -> Path:
    """Unpack a tar archive into `folder`; return the only folder in it if there is just one, else `folder`.

    Raises OSError, also for an archive with paths or links that lead out of `folder`.
    """
    if not hasattr(tarfile, "data_filter"):  # PEP 706
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
