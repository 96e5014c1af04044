{{- define "chittyconnect.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "chittyconnect.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := include "chittyconnect.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "chittyconnect.selectorLabels" -}}
app.kubernetes.io/name: {{ include "chittyconnect.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "chittyconnect.labels" -}}
{{ include "chittyconnect.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "chittyconnect.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "chittyconnect.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "chittyconnect.image" -}}
{{- with .Values.image }}
{{- with .registry }}{{ . }}/{{ end }}
{{- .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "chittyconnect.connectionSpec" -}}
{{- $spec := deepCopy .Values.connection.spec }}
{{- with .Values.connection.existingSecret }}
{{- $auth := dict "apiKeySecretRef" (dict "name" . "key" "api-key") }}
{{- $spec = mergeOverwrite (dict "auth" $auth) $spec }}
{{- end }}
{{- toYaml $spec }}
{{- end }}

{{- /* What the controller may do where credentials are: everywhere, or in each namespace of its scope. */}}
{{- define "chittyconnect.credentialRules" }}
# What users ask for. Specs are theirs: the controller cannot change them.
- apiGroups: [connect.chitty.cc]
  resources: [ephemeralcredentials]
  verbs: [get, list, watch]
# What became of it: replaced as a whole.
- apiGroups: [connect.chitty.cc]
  resources: [ephemeralcredentials/status]
  verbs: [update]
# Tokens go to Secrets in the namespaces that asked. RBAC can tell Secrets apart neither by label nor by
# owner; the controller writes and deletes only those it owns, and it watches them by metadata alone.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, update, delete]
# `kubectl describe` shows what happened.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- if .Values.rbac.pods }}
# Which Pods use a Secret decides whether there is a token on demand. No more is kept of them.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- end }}
{{- if .Values.consumers.restart }}
# Workloads that ask for it are restarted before a token ends that their Pods have read once; a Pod tells of its Deployment
# by a ReplicaSet.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get]
- apiGroups: [apps]
  resources: [deployments, statefulsets, daemonsets]
  verbs: [get, patch]
{{- end }}
{{- end }}

{{- define "chittyconnect.connectionNames" }}
{{- with .Values.scope.connections }}
  resourceNames:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "chittyconnect.checkScope" }}
{{- with .Values.scope }}
{{- if and .namespaces (not .connections) }}
{{- fail "scope.namespaces needs scope.connections: whoever serves a few namespaces names the connections that are theirs, for one installation alone serves a connection" }}
{{- end }}
{{- if and .connections $.Values.connection.create (not (has $.Values.connection.name .connections)) }}
{{- fail (printf "scope.connections has to name %s, the connection that connection.create makes" $.Values.connection.name) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* For policy bindings: the namespaces of the scope and no others. */}}
{{- define "chittyconnect.matchScope" }}
{{- with .Values.scope.namespaces }}
  matchResources:
    namespaceSelector:
      matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values:
        {{- toYaml . | nindent 8 }}
{{- end }}
{{- end }}
