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
