{{- define "taxbreak.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "taxbreak.labels" -}}
app.kubernetes.io/name: taxbreak-vllm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What PodMonitor and NetworkPolicy select: the pods that hold a sidecar. */ -}}
{{- define "taxbreak.selector" -}}
taxbreak-vllm/sidecar: {{ .Release.Name }}
{{- end }}

{{- define "taxbreak.podSecurity" -}}
runAsNonRoot: {{ ne (int .Values.user.uid) 0 }}
runAsUser: {{ .Values.user.uid }}
runAsGroup: {{ .Values.user.gid }}
fsGroup: {{ .Values.user.uid }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "taxbreak.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: {{ ne (int .Values.user.uid) 0 }}
runAsUser: {{ .Values.user.uid }}
runAsGroup: {{ .Values.user.gid }}
seccompProfile: {type: RuntimeDefault}
capabilities: {drop: [ALL]}
{{- end }}

{{- define "taxbreak.claim" -}}
{{ .Values.spool.existingClaim | default (printf "%s-spool" .Release.Name) }}
{{- end }}

{{- /* In memory: what fills it is told so, where a folder on the node's disk would cost the pod, vLLM included. */ -}}
{{- define "taxbreak.tmp" -}}
- name: taxbreak-tmp
  emptyDir: {medium: Memory, sizeLimit: 64Mi}
{{- end }}

{{- /* Settings that workers and sidecar share. */ -}}
{{- define "taxbreak.sharedEnv" -}}
- {name: TAXBREAK_SPOOL, value: /taxbreak/spool}
- {name: TAXBREAK_SPOOL_MAX_BYTES, value: {{ .Values.spool.maxBytes | int64 | quote }}}
{{- end }}

{{- /* What tells the sidecar, and the report, of the archive, with the credentials of its store. */ -}}
{{- define "taxbreak.archiveEnv" -}}
{{- range $name, $value := .Values.archive.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "taxbreak.archiveFrom" -}}
{{- with .Values.archive.existingSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "taxbreak.archiveVolume" -}}
- name: taxbreak-archive
  persistentVolumeClaim: {claimName: {{ .Values.archive.existingClaim }}}
{{- end }}

{{- define "taxbreak.serviceAccount" -}}
{{ .Values.archive.serviceAccount.name | default .Release.Name }}
{{- end }}

{{- define "taxbreak.container" -}}
name: taxbreak
image: {{ include "taxbreak.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  {{- include "taxbreak.sharedEnv" . | nindent 2 }}
  - {name: TAXBREAK_HOST, value: 0.0.0.0}
  - {name: TAXBREAK_PORT, value: {{ .Values.port | int64 | quote }}}
  - {name: TAXBREAK_WINDOW_S, value: {{ .Values.settings.windowSeconds | int64 | quote }}}
  - {name: TAXBREAK_RETENTION_S, value: {{ .Values.settings.retentionSeconds | int64 | quote }}}
  - {name: TAXBREAK_RESULTS_MAX_BYTES, value: {{ .Values.results.maxBytes | int64 | quote }}}
  {{- if eq .Values.mode "deployment" }}
  - {name: TAXBREAK_RESULTS, value: /results/results.sqlite3} # SQLite and network volumes do not go together
  {{- end }}
  {{- with .Values.archive }}
  {{- if .url }}
  - {name: TAXBREAK_ARCHIVE, value: {{ .url | quote }}}
  - {name: TAXBREAK_ARCHIVE_BYTES_PER_SECOND, value: {{ .bytesPerSecond | int64 | quote }}}
  - {name: TAXBREAK_ARCHIVE_BYTES_PER_DAY, value: {{ .bytesPerDay | int64 | quote }}}
  - {name: TAXBREAK_ARCHIVE_BATCH_S, value: {{ .batchSeconds | int64 | quote }}}
  {{- include "taxbreak.archiveEnv" $ | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- with .Values.apiKey }}
  {{- if and .existingSecret .key }}
  - name: TAXBREAK_API_KEY
    valueFrom:
      secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}
  {{- end }}
  {{- if and .existingSecret .readKey }}
  - name: TAXBREAK_READ_KEY
    valueFrom:
      secretKeyRef: {name: {{ .existingSecret }}, key: {{ .readKey }}}
  {{- end }}
  {{- end }}
{{- if .Values.archive.url }}
{{- include "taxbreak.archiveFrom" . | nindent 0 }}
{{- end }}
ports:
  - {name: taxbreak, containerPort: {{ .Values.port }}}
securityContext:
  {{- include "taxbreak.security" . | nindent 2 }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - {name: taxbreak-spool, mountPath: /taxbreak}
  - {name: taxbreak-tmp, mountPath: /tmp}
  {{- if .Values.archive.existingClaim }}
  - {name: taxbreak-archive, mountPath: /archive}
  {{- end }}
  {{- if eq .Values.mode "deployment" }}
  - {name: taxbreak-results, mountPath: /results}
  {{- end }}
{{- end }}
