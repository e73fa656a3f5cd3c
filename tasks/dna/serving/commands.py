"""What ``manifoldflow serve dna`` runs."""

from manifoldflow.serving import run
from manifoldflow.serving.catalogue import name_models


def serve(
    checkpoints: list[str] | str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    motifs: str | None = None,
    motif: str | None = None,
    queue: int = 128,
    timeout: float = 60.0,
    threads: int | None = None,
    hosts: list[str] | str | None = None,
    origins: list[str] | str | None = None,
    root_path: str = "",
    connections: int = 512,
    idle: float = 10.0,
) -> None:
    """Serve the sequence designer: a page for people, /v1/design and /v1/score for programs, until Ctrl-C.

    Args:
        checkpoints: model files, run folders or names of embedded models, several with commas; all the embedded ones of this
            task if absent. A model is called after its file or folder, and requests get the first one unless they name another.
        host: address to listen on; the server has no password, so leave it on this machine unless others should use it.
        port: of the address; 0 for any that is free.
        motifs: JASPAR, MEME or TRANSFAC file of motifs that designs are searched for.
        motif: names of motifs of that file, with commas, such as MA0139.1,MA0080.4; all of them if absent.
        queue: requests that may wait; more are answered with 429.
        timeout: seconds that a request may take.
        threads: of the models; as many as there are cores if absent.
        hosts: names by which others reach this server, with commas, such as designer.example.org; requests to other names than
            these, localhost and its address are refused. `*` takes any.
        origins: of pages elsewhere whose scripts may ask and which may show the page in a frame, with commas, such as
            https://lab.example.org.
        root_path: path under which a proxy shows this server, such as /designer.
        connections: that may be open at once; the one that has rested longest makes room for a new one.
        idle: seconds that a connection may stay without a complete request.
    """
    from manifoldflow.tasks.dna.serving.service import DnaService

    models = name_models(checkpoints, "dna_", "dna")
    run.serve(
        lambda: DnaService(motifs, motif),
        models,
        host=host,
        port=port,
        queue=queue,
        timeout=timeout,
        threads=threads,
        hosts=hosts,
        origins=origins,
        root_path=root_path,
        connections=connections,
        idle=idle,
    )
