"""The engines' flags that the hand lets pass, each with what may follow it. Data, no logic.

All that fetches, listens, writes a file, runs a tool or reads a key is left out on purpose: such a
flag is refused, and so is one that nobody has thought about yet. Old and new spellings stand side
by side; which one a build knows is the dialect's business, not the hand's.
"""

from __future__ import annotations

from enum import StrEnum


class Value(StrEnum):
    """What follows a flag. FILE: one of the files that the spec says it reads."""

    NONE = "nothing"
    SWITCH = "on, off, auto or nothing"
    NUMBER = "a number"
    WORD = "a word"
    TEXT = "a text"
    FILE = "a file to read"
    OVERRIDE = "a placement of tensors"
    HOST = "an address to listen on"
    ENDPOINTS = "ends of ways to members on this node"
    SERVER_PORT = "a port for an rpc-server"
    FRONT = "an rpc-server on this node"
    DOOR = "an address for a door"
    WAY = "a way to a member"
    NODE = "a node's id"
    TRIPLE = "a version of three numbers"
    TLS = "the folder of this node's certificate"
    STATUS = "this guard's own socket"


OUTPUT_ON_CPU = "^(output|token_embd)=CPU"
"""The output layer and its norm; where it is the embedding over again, that has the only name."""

OVERRIDES = frozenset((OUTPUT_ON_CPU,))
"""All tensor overrides that meshd renders."""


def _table(groups: dict[Value, str]) -> dict[str, Value]:
    return {flag: value for value, flags in groups.items() for flag in flags.split()}


LLAMA = _table(
    {
        Value.NONE: """
            --backend-sampling -bs --cache-idle-slots --cache-prompt --check-tensors --context-shift
            --cont-batching -cb --cpu-moe -cmoe --cpu-moe-draft -cmoed --direct-io -dio --embedding
            --embeddings --jinja --kv-offload -kvo --kv-unified -kvu --log-disable --log-jsonl
            --log-prefix --log-timestamps --metrics --mlock --mmap --mmproj-auto --mmproj-offload
            --no-agent -no-ag --no-cache-idle-slots --no-cache-prompt --no-context-shift
            --no-cont-batching -nocb --no-cors-credentials --no-direct-io -ndio --no-host
            --no-jinja --no-kv-offload -nkvo --no-kv-unified -no-kvu --no-log-jsonl
            --no-log-prefix --no-log-timestamps --no-mmap --no-mmproj --no-mmproj-auto
            --no-mmproj-offload --no-op-offload --no-perf --no-prefill-assistant --no-repack -nr
            --no-skip-chat-parsing --no-slots --no-spec-draft-backend-sampling --no-ui
            --no-ui-mcp-proxy --no-warmup --no-webui --no-webui-mcp-proxy --offline --op-offload
            --perf --prefill-assistant --repack --rerank --reranking --skip-chat-parsing --slots
            --spec-default --spec-draft-backend-sampling --spec-draft-cpu-moe --special -sp
            --spm-infill --swa-full --ui --verbose -v --log-verbose --warmup --webui
            --reasoning-preserve --no-reasoning-preserve
        """,
        Value.SWITCH: "--fit -fit --flash-attn -fa --log-colors --reasoning -rea",
        Value.NUMBER: """
            --batch-size -b --cache-ram -cram --cache-reuse --checkpoint-every-n-tokens
            --checkpoint-min-step -cms --cpu-strict --cpu-strict-batch --ctx-checkpoints -ctxcp
            --ctx-size -c --ctx-size-draft -cd --defrag-thold -dt --draft --draft-max --draft-min
            --draft-n --draft-n-min --draft-p-min --draft-p-split --dry-allowed-length --dry-base
            --dry-multiplier --dry-penalty-last-n --dynatemp-exp --dynatemp-range --embd-normalize
            --fit-ctx -fitc --frequency-penalty --gpu-layers --gpu-layers-draft -ngld
            --image-max-tokens --image-min-tokens --keep --kv-unified-per-slot --log-verbosity
            --main-gpu -mg --min-p --mirostat --mirostat-ent --mirostat-lr --moe-cache-mib
            --mtmd-batch-max-tokens --n-cpu-ffn -ncffn --n-cpu-moe -ncmoe --n-cpu-moe-draft
            -ncmoed --n-gpu-layers -ngl --n-gpu-layers-draft --n-predict -n --parallel -np --poll
            --poll-batch --port --predict --presence-penalty --prio --prio-batch
            --reasoning-budget --repeat-last-n --repeat-penalty --rope-freq-base
            --rope-freq-scale --rope-scale --seed -s --sleep-idle-seconds --slot-prompt-similarity
            -sps --spec-draft-n-cpu-moe --spec-draft-ncmoe --spec-draft-n-max --spec-draft-n-min
            --spec-draft-n-ubatch --spec-draft-ngl --spec-draft-p-min --spec-draft-p-split
            --spec-draft-threads --spec-draft-threads-batch --spec-ngram-map-k-min-hits
            --spec-ngram-map-k-size-m --spec-ngram-map-k-size-n --spec-ngram-map-k4v-min-hits
            --spec-ngram-map-k4v-size-m --spec-ngram-map-k4v-size-n --spec-ngram-mod-n-match
            --spec-ngram-mod-n-max --spec-ngram-mod-n-min --spec-ngram-simple-min-hits
            --spec-ngram-simple-size-m --spec-ngram-simple-size-n --sse-ping-interval
            --swa-checkpoints --temp --temperature --threads -t --threads-batch -tb
            --threads-batch-draft -tbd --threads-draft -td --threads-http --timeout -to --top-k
            --top-n-sigma --top-nsigma --top-p --typical --typical-p --ubatch-size -ub --verbosity
            -lv --xtc-probability --xtc-threshold --yarn-attn-factor --yarn-beta-fast
            --yarn-beta-slow --yarn-ext-factor --yarn-orig-ctx
        """,
        Value.WORD: """
            --cache-type-k -ctk --cache-type-k-draft -ctkd --cache-type-v -ctv
            --cache-type-v-draft -ctvd --chat-template --cpu-mask -C --cpu-mask-batch -Cb
            --cpu-range -Cr --cpu-range-batch -Crb --device -dev --device-draft -devd --fit-target
            -fitt --lazy-mode -lzm --load-mode -lm --mmproj-device -mmdev --numa --override-kv
            --pooling --reasoning-effort --reasoning-format --rope-scaling --sampler-seq --samplers
            --sampling-seq --spec-draft-device --spec-draft-sampling --spec-draft-type-k
            --spec-draft-type-v --spec-type --split-mode -sm --tensor-split -ts
        """,
        Value.TEXT: "--alias -a --chat-template-kwargs --reasoning-budget-message --tags",
        Value.FILE: """
            --chat-template-file --control-vector --grammar-file --json-schema-file -jf --lora
            --lookup-cache-static -lcs --mmproj -mm --model -m --model-draft -md
            --spec-draft-model
        """,
        Value.OVERRIDE: """
            --override-tensor -ot --override-tensor-draft -otd --spec-draft-override-tensor
        """,
        Value.HOST: "--host",
        Value.ENDPOINTS: "--rpc",
    }
)

RPC = _table(
    {
        Value.NONE: "--cache -c",
        Value.NUMBER: "--threads -t --mem -m",
        Value.WORD: "--device -d",
        Value.HOST: "--host -H",
        Value.SERVER_PORT: "--port -p",
    }
)

# What follows the words "guard NAME END".
GUARD_MEMBER = _table(
    {
        Value.DOOR: "--listen",
        Value.FRONT: "--front",
        Value.NODE: "--admit",
        Value.NUMBER: "--term",
        Value.TRIPLE: "--protocol",
        Value.TLS: "--tls",
        Value.STATUS: "--status",
    }
)
GUARD_HOST = _table(
    {
        Value.WAY: "--local",
        Value.NUMBER: "--term --ubatch-s",
        Value.TRIPLE: "--protocol",
        Value.TLS: "--tls",
        Value.STATUS: "--status",
    }
)

ENVIRONMENT = frozenset(
    (
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "GGML_CUDA_DISABLE_GRAPHS",
        "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
        "GGML_VK_VISIBLE_DEVICES",
        "GPU_DEVICE_ORDINAL",
        "HIP_VISIBLE_DEVICES",
        "HSA_OVERRIDE_GFX_VERSION",
        "MESHD_TERM",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "ONEAPI_DEVICE_SELECTOR",
        "ROCR_VISIBLE_DEVICES",
        "ZE_AFFINITY_MASK",
    )
)
# Searched for libraries or plug-ins: folders of the engine only.
ENVIRONMENT_FOLDERS = frozenset(("GGML_BACKEND_DIR", "LD_LIBRARY_PATH"))
