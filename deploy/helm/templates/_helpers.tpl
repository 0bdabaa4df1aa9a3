{{/* The name of every object: the release's, and the chart's if the release's does not contain it. */}}
{{- define "sdxl-turbo-server.fullname" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{- .Values.fullnameOverride | default $name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* The labels by which the release's pods are selected. */}}
{{- define "sdxl-turbo-server.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sdxl-turbo-server.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "sdxl-turbo-server.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "sdxl-turbo-server.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion .Values.target) -}}
{{- .Values.image.repository }}{{ .Values.image.digest | empty | ternary (print ":" $tag) (print "@" .Values.image.digest) -}}
{{- end }}

{{/* A setting's value as text. Helm reads numbers as floats, and prints large floats with an exponent; YAML does not. */}}
{{- define "sdxl-turbo-server.text" -}}
{{- kindIs "string" . | ternary . (toYaml .) -}}
{{- end }}

{{- define "sdxl-turbo-server.drain" -}}
{{- $drain := (.Values.settings | default dict).TURBO_DRAIN_S -}}
{{- include "sdxl-turbo-server.text" (kindIs "invalid" $drain | ternary 60 $drain) -}}
{{- end }}

{{/* The ConfigMap's data. TURBO_DRAIN_S is in the Deployment, beside the grace period. A setting that is null is not set. */}}
{{- define "sdxl-turbo-server.settings" -}}
{{- $models := dict "cpu" "demo" "cuda" "hf:stabilityai/sdxl-turbo" "npu" "openmind:PyTorch-NPU/sdxl-turbo" -}}
{{- $chart := dict "TURBO_DEVICE" .Values.target "TURBO_MODEL" (get $models .Values.target) -}}
{{- if include "sdxl-turbo-server.keys" . }}{{ $_ := set $chart "TURBO_API_KEYS_FILE" "/etc/sdxl-turbo-server/keys" }}{{ end -}}
{{- range $name, $value := .Values.settings }}
{{- if kindIs "invalid" $value | not }}{{ $_ := set $chart $name $value }}{{ end }}
{{- end }}
{{- range $name, $value := omit $chart "TURBO_DRAIN_S" }}
{{ $name }}: {{ include "sdxl-turbo-server.text" $value | quote }}
{{- end }}
{{- end }}

{{/* The Secret of the API keys; empty if there are none. */}}
{{- define "sdxl-turbo-server.keys" -}}
{{- if or .Values.apiKeys.existingSecret .Values.apiKeys.keys -}}
{{- .Values.apiKeys.existingSecret | default (printf "%s-api-keys" (include "sdxl-turbo-server.fullname" .)) -}}
{{- end }}
{{- end }}

{{/* Not empty if there is a volume of weights: by default, if there is a claim or an image, or a setting names a hub. */}}
{{- define "sdxl-turbo-server.weights" -}}
{{- $needed := or .Values.weights.existingClaim .Values.weights.image.reference | empty | not -}}
{{- $settings := include "sdxl-turbo-server.settings" . | fromYaml -}}
{{- range list "TURBO_MODEL" "TURBO_VAE" "TURBO_LORA" }}
{{- range splitList "," (get $settings . | toString) }}
{{- if regexMatch "^(hf|openmind):" (trim .) }}{{ $needed = true }}{{ end }}
{{- end }}
{{- end }}
{{- if kindIs "bool" .Values.weights.enabled | ternary .Values.weights.enabled $needed }}true{{ end }}
{{- end }}

{{/* Not empty if the volume is a claim, which `pull` fills; an image has the weights already. */}}
{{- define "sdxl-turbo-server.pull" -}}
{{- if not .Values.weights.image.reference }}{{ include "sdxl-turbo-server.weights" . }}{{ end }}
{{- end }}

{{- define "sdxl-turbo-server.claim" -}}
{{- .Values.weights.existingClaim | default (printf "%s-weights" (include "sdxl-turbo-server.fullname" .)) -}}
{{- end }}

{{/* Of `serve`. On CPU measured with the demo model: peak memory 1.22 GB while eight requests for 1024x1024 were sent at once.
     There is no CPU limit, because throttling would delay probes and answers. A device's limit is also its request. */}}
{{- define "sdxl-turbo-server.resources" -}}
{{- $small := dict "requests" (dict "cpu" "2" "memory" "2Gi") "limits" (dict "memory" "4Gi") -}}
{{- $large := dict "requests" (dict "cpu" "4" "memory" "16Gi") "limits" (dict "memory" "32Gi") -}}
{{- $resources := eq .Values.target "cpu" | ternary $small $large -}}
{{- if ne .Values.target "cpu" }}{{ $_ := set $resources.limits (index .Values .Values.target).resource 1 }}{{ end -}}
{{- toYaml (mergeOverwrite $resources (.Values.resources | default dict)) -}}
{{- end }}

{{/* Errors that a schema cannot find or explain. */}}
{{- define "sdxl-turbo-server.check" -}}
{{- $name := include "sdxl-turbo-server.fullname" . -}}
{{- if regexMatch "^[a-z][-a-z0-9]*$" $name | not }}
{{- fail (printf "%s cannot be a Service's name, which begins with a letter and has no dots: choose another release name, or set fullnameOverride." $name) }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if hasPrefix "TURBO_" (upper .name) }}
{{- fail (printf "extraEnv must not have %s: settings belong in settings, and the chart sets the others." .name) }}
{{- end }}
{{- end }}
{{- if and .Values.autoscaling.enabled (kindIs "invalid" .Values.replicas | not) }}
{{- fail "replicas and autoscaling.enabled exclude each other: each upgrade would undo the autoscaler's change." }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas exceeds autoscaling.maxReplicas." }}
{{- end }}
{{- $several := or .Values.autoscaling.enabled (gt (int .Values.replicas) 1) }}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.picturesPerSecond) }}
{{- fail "autoscaling.enabled requires autoscaling.picturesPerSecond, 0.7 x the images/s of `python -m app bench` on your device." }}
{{- end }}
{{- if and .Values.autoscaling.enabled (eq (int .Values.autoscaling.minReplicas) 0) }}
{{- if ne .Values.autoscaling.engine "keda" }}
{{- fail "autoscaling.minReplicas=0 requires autoscaling.engine=keda." }}
{{- end }}
{{- if empty .Values.autoscaling.triggers }}
{{- fail "autoscaling.minReplicas=0 requires a trigger in autoscaling.triggers, because without a pod the service has no metrics." }}
{{- end }}
{{- end }}
{{- if and (eq .Values.autoscaling.engine "hpa") .Values.autoscaling.triggers }}
{{- fail "autoscaling.triggers requires autoscaling.engine=keda." }}
{{- end }}
{{- if and .Values.weights.image.reference .Values.weights.existingClaim }}
{{- fail "weights.image.reference and weights.existingClaim exclude each other." }}
{{- end }}
{{- $claim := and (include "sdxl-turbo-server.pull" .) (not .Values.weights.existingClaim) }}
{{- if and $several $claim (not .Values.weights.accessMode) }}
{{- fail "Several pods require weights.accessMode: ReadWriteMany if they may run on several nodes, ReadWriteOnce if they cannot. The mode of a claim cannot be changed, so a release that has one keeps its mode, or gets another claim by weights.existingClaim." }}
{{- end }}
{{- if and .Values.apiKeys.existingSecret .Values.apiKeys.keys }}
{{- fail "apiKeys.existingSecret and apiKeys.keys exclude each other." }}
{{- end }}
{{- $metrics := (include "sdxl-turbo-server.settings" . | fromYaml).TURBO_METRICS }}
{{- if and (eq $metrics "key") (include "sdxl-turbo-server.keys" . | not) }}
{{- fail "TURBO_METRICS=key requires apiKeys.existingSecret or apiKeys.keys." }}
{{- end }}
{{- if and .Values.autoscaling.enabled (eq $metrics "off") }}
{{- fail "autoscaling.enabled requires metrics, and TURBO_METRICS is off." }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (eq $metrics "off") }}
{{- fail "serviceMonitor.enabled requires metrics, and TURBO_METRICS is off." }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (eq $metrics "key") (not .Values.serviceMonitor.authorization) }}
{{- fail "TURBO_METRICS=key requires serviceMonitor.authorization, so that Prometheus sends a key." }}
{{- end }}
{{- end }}
