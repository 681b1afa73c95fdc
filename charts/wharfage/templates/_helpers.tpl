{{/* Names, labels and the image, which several templates share. */}}

{{- define "wharfage.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "wharfage.fullname" -}}
{{- $name := include "wharfage.name" . }}
{{- $joined := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $joined | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "wharfage.selectorLabels" -}}
app.kubernetes.io/name: {{ include "wharfage.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "wharfage.labels" -}}
{{ include "wharfage.selectorLabels" . }}
app.kubernetes.io/part-of: wharfage
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "wharfage.serviceAccountName" -}}
{{- $default := .Values.serviceAccount.create | ternary (include "wharfage.fullname" .) "default" }}
{{- .Values.serviceAccount.name | default $default }}
{{- end }}

{{- define "wharfage.image" -}}
{{- $image := .Values.image }}
{{- if not $image.repository }}
{{- fail "set image.repository: build the image, push it to a registry that the cluster pulls from, and name it here without its tag" }}
{{- end }}
{{- $tag := $image.tag | default (empty $image.digest | ternary .Chart.AppVersion "") }}
{{- $image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* The operator's identity. Settings are variables, not arguments, so that a kustomize patch finds them by name. */}}
{{- define "wharfage.identity" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}

{{- define "wharfage.settings" -}}
{{- $grace := div (mul .Values.terminationGracePeriodSeconds 2) 3 }}
{{- $settings := list
  (list "WHARFAGE_CLUSTER" .Values.cluster)
  (list "WHARFAGE_ADMIN_LISTEN" (printf "[::]:%v" .Values.adminPort))
  (list "WHARFAGE_LEADER_ELECT" .Values.leaderElection.enabled)
  (list "WHARFAGE_LEASE_NAME" .Values.leaderElection.leaseName)
  (list "WHARFAGE_SHUTDOWN_GRACE" $grace)
  (list "WHARFAGE_MANAGED_NAMESPACES" (join "," .Values.rbac.managedNamespaces))
  (list "WHARFAGE_REGISTRY_IMAGE" (.Values.registryImage | default (include "wharfage.image" .)))
  (list "WHARFAGE_LOG" .Values.log.filter)
  (list "WHARFAGE_LOG_FORMAT" .Values.log.format)
}}
{{- range $settings }}
- name: {{ index . 0 }}
  value: {{ index . 1 | toString | quote }}
{{- end }}
{{- end }}

{{- /* The disabled features, as arguments. */}}
{{- define "wharfage.without" -}}
{{- range $name, $on := .Values.features }}
{{- if not $on }}
- --without={{ kebabcase $name }}
{{- end }}
{{- end }}
{{- end }}
