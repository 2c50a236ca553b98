"""Every verb by name: where it is implemented and what it is for. Data only, so that start-up imports no verb.

A row: path (`container ls`), module under `dray.cli.commands`, what the verb does, the name it has at the top level
(empty: none), other names at its own level. The module's `COMMANDS` maps the path to its `Command`.
"""

from __future__ import annotations


class Verb:
    """One row of the table."""

    __slots__ = ("aliases", "module", "path", "short", "top")

    def __init__(self, path: str, module: str, short: str, top: str = "", aliases: tuple[str, ...] = ()) -> None:
        self.path = path
        self.module = module
        self.short = short
        self.top = top
        self.aliases = aliases


GROUPS = {
    "builder": "Manage the build cache",
    "checkpoint": "Manage checkpoints of containers",
    "container": "Manage containers",
    "context": "Manage contexts (named daemon addresses)",
    "daemon": "Look after the dray daemon",
    "image": "Manage images",
    "manifest": "Manage manifest lists: one name for images of several platforms",
    "network": "Manage networks",
    "registry": "Serve a registry of images",
    "system": "Manage the engine as a whole",
    "volume": "Manage volumes",
}

COMMON = ("run", "exec", "ps", "build", "pull", "push", "images", "login", "logout", "search", "version", "info")

VERBS = (
    Verb("builder build", "build", "Build an image from a Dockerfile"),
    Verb("builder prune", "prune", "Remove build cache"),
    Verb("checkpoint create", "checkpoint", "Write a running container's processes down, and stop it"),
    Verb("checkpoint ls", "checkpoint", "List a container's checkpoints", "", ("list",)),
    Verb("checkpoint rm", "checkpoint", "Remove a checkpoint", "", ("remove",)),
    Verb("container attach", "attach", "Connect this terminal's streams to a running container", "attach"),
    Verb("container commit", "commit", "Make an image of a container's changes", "commit"),
    Verb("container cp", "cp", "Copy files or folders between a container and the host", "cp"),
    Verb("container create", "run", "Create a container without starting it", "create"),
    Verb("container diff", "observe", "List what changed in a container's filesystem", "diff"),
    Verb("container exec", "attach", "Run a command in a running container", "exec"),
    Verb("container edit", "edit", "Change variables, labels, ports, mounts or name of a container", "edit"),
    Verb("container export", "cp", "Write a container's filesystem as a tar archive", "export"),
    Verb("container inspect", "inspect", "Show all details of one or more containers"),
    Verb("container kill", "lifecycle", "Kill one or more running containers", "kill"),
    Verb("container logs", "observe", "Show the output a container has written", "logs"),
    Verb("container ls", "ps", "List containers", "ps", ("list", "ps")),
    Verb("container pause", "lifecycle", "Freeze all processes of one or more containers", "pause"),
    Verb("container port", "observe", "List a container's published ports, or look one up", "port"),
    Verb("container prune", "prune", "Remove all stopped containers"),
    Verb("container rename", "lifecycle", "Rename a container", "rename"),
    Verb("container restart", "lifecycle", "Restart one or more containers", "restart"),
    Verb("container rm", "lifecycle", "Remove one or more containers", "rm", ("remove",)),
    Verb("container run", "run", "Create a container from an image and run it", "run"),
    Verb("container start", "lifecycle", "Start one or more stopped containers", "start"),
    Verb("container stats", "stats", "Show containers' resource usage, live", "stats"),
    Verb("container stop", "lifecycle", "Stop one or more running containers", "stop"),
    Verb("container top", "observe", "Show a container's processes", "top"),
    Verb("container unpause", "lifecycle", "Thaw all processes of one or more containers", "unpause"),
    Verb("container update", "update", "Change limits of one or more containers", "update"),
    Verb("container wait", "lifecycle", "Wait until containers stop, then print their exit codes", "wait"),
    Verb("context create", "context", "Create a context"),
    Verb("context export", "context", "Write a context to a tar archive, or to standard output"),
    Verb("context import", "context", "Read a context from a tar or zip archive"),
    Verb("context inspect", "context", "Show all details of one or more contexts"),
    Verb("context ls", "context", "List contexts", "", ("list",)),
    Verb("context rm", "context", "Remove one or more contexts", "", ("remove",)),
    Verb("context show", "context", "Print the name of the current context"),
    Verb("context update", "context", "Change a context"),
    Verb("context use", "context", "Set the current context"),
    Verb("daemon status", "daemon", "Show whether a daemon answers, where, and how to start one"),
    Verb("daemon unit", "daemon", "Print the daemon's systemd unit"),
    Verb("image build", "build", "Build an image from a Dockerfile", "build"),
    Verb("image history", "images", "Show the steps an image was made in", "history"),
    Verb("image import", "transfer", "Make an image of a filesystem archive", "import"),
    Verb("image inspect", "inspect", "Show all details of one or more images"),
    Verb("image load", "transfer", "Load images from a tar archive or standard input", "load"),
    Verb("image ls", "images", "List images", "images", ("list",)),
    Verb("image prune", "prune", "Remove unused images"),
    Verb("image pull", "transfer", "Download an image from a registry", "pull"),
    Verb("image push", "transfer", "Upload an image to a registry", "push"),
    Verb("image rm", "images", "Remove one or more images", "rmi", ("remove",)),
    Verb("image save", "transfer", "Write images to a tar archive, or to standard output", "save"),
    Verb("image tag", "images", "Give an image another name", "tag"),
    Verb("inspect", "inspect", "Show all details of containers, images, volumes or networks", "inspect"),
    Verb("login", "login", "Store credentials for a registry", "login"),
    Verb("logout", "login", "Forget the credentials for a registry", "logout"),
    Verb("manifest annotate", "manifest", "Say for which platform an image of a local manifest list is"),
    Verb("manifest create", "manifest", "Create a local manifest list for annotating and pushing to a registry"),
    Verb("manifest inspect", "manifest", "Display an image manifest, or manifest list"),
    Verb("manifest push", "manifest", "Push a manifest list to a repository"),
    Verb("manifest rm", "manifest", "Delete one or more manifest lists from local storage"),
    Verb("network connect", "network", "Connect a container to a network"),
    Verb("network create", "network", "Create a network"),
    Verb("network disconnect", "network", "Disconnect a container from a network"),
    Verb("network inspect", "inspect", "Show all details of one or more networks"),
    Verb("network ls", "network", "List networks", "", ("list",)),
    Verb("network prune", "prune", "Remove all unused networks"),
    Verb("network rm", "network", "Remove one or more networks", "", ("remove",)),
    Verb("registry gc", "registry", "Remove what a registry of ours no longer needs"),
    Verb("registry serve", "registry", "Serve a registry: images by the distribution protocol"),
    Verb("search", "search", "Search a registry for images", "search"),
    Verb("system df", "df", "Show disk usage"),
    Verb(
        "system dial-stdio", "daemon", "Join standard input and output to the daemon's socket (for ssh addresses)"
    ),
    Verb("system events", "events", "Show the daemon's events as they happen", "events"),
    Verb("system info", "info", "Show what the daemon says of itself and its host", "info"),
    Verb("system prune", "prune", "Remove all unused data"),
    Verb("version", "version", "Show the versions of client and daemon", "version"),
    Verb("volume create", "volume", "Create a volume"),
    Verb("volume export", "volume", "Write a volume's files as a tar archive"),
    Verb("volume import", "volume", "Make a volume of a tar archive"),
    Verb("volume inspect", "inspect", "Show all details of one or more volumes"),
    Verb("volume ls", "volume", "List volumes", "", ("list",)),
    Verb("volume prune", "prune", "Remove unused local volumes"),
    Verb("volume rename", "volume", "Give a volume another name"),
    Verb("volume rm", "volume", "Remove one or more volumes", "", ("remove",)),
)

HIDDEN = frozenset(("builder build", "system dial-stdio"))


def find(words: list[str]) -> tuple[Verb | None, str, int]:
    """Find the verb that `words` begin with.

    Returns the verb (None: no such verb, or a group alone), the path as the user should read it (`ps`,
    `container ls`, `container`), and how many words it took.
    """
    first = words[0]
    if first in GROUPS:
        if len(words) < 2 or words[1].startswith("-"):
            return None, first, 1
        for verb in VERBS:
            group, _, name = verb.path.partition(" ")
            if group == first and (words[1] == name or words[1] in verb.aliases):
                return verb, verb.path, 2
        return None, first, 1
    for verb in VERBS:
        if verb.top and verb.top == first:
            return verb, verb.top, 1
    return None, "", 0
