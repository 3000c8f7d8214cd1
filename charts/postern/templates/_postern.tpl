{{/* Faults that the schema cannot see. Included by what is rendered first, and by what would fail without saying why. */}}
{{- define "postern.check" -}}
{{- if ne .Release.Namespace "postern-system" -}}
{{- fail (printf "\n\nPostern lives in the namespace postern-system, and this release is for %q: the identities of its CA, control and injector (spiffe://%s/ns/postern-system/sa/postern-ca, ...) are bound to that namespace.\nInstall it with: helm install postern <chart> --namespace postern-system --create-namespace\n" .Release.Namespace .Values.trustDomain) -}}
{{- end -}}
{{- with .Values.ca.broughtIssuer -}}
{{- if and .secretName .externalSecret.enabled -}}
{{- fail "\n\nca.broughtIssuer: the issuer comes from one Secret: set secretName, or externalSecret.enabled, not both.\n" -}}
{{- end -}}
{{- if and .externalSecret.enabled (not .externalSecret.storeName) -}}
{{- fail "\n\nca.broughtIssuer.externalSecret.storeName: name the SecretStore or ClusterSecretStore that holds the issuer.\n" -}}
{{- end -}}
{{- end -}}
{{- if not (dig "bundleEndpoint" false (.Values.federation | default dict)) -}}
{{- fail "\n\nfederation: these are the values of an older chart: upgrade with --reset-then-reuse-values instead of --reuse-values.\n" -}}
{{- end -}}
{{- with .Values.federation -}}
{{- if and .relationships .configMapName -}}
{{- fail "\n\nfederation: one file says whom to believe: set relationships or configMapName, not both.\n" -}}
{{- end -}}
{{- $names := list -}}
{{- range .relationships -}}
{{- if has .trustDomain $names -}}
{{- fail (printf "\n\nfederation.relationships: %s is there twice.\n" .trustDomain) -}}
{{- end -}}
{{- $names = append $names .trustDomain -}}
{{- if has .trustDomain (prepend $.Values.trustDomainAliases $.Values.trustDomain) -}}
{{- fail (printf "\n\nfederation.relationships: %s is our own trust domain, or another name of it: nobody else speaks for it.\n" .trustDomain) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The ConfigMap that says which other trust domains are believed; empty: none. */}}
{{- define "postern.federation" -}}
{{- with .Values.federation -}}
{{- if .relationships }}postern-federation{{ else }}{{ .configMapName }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Not empty: our bundle is served to other trust domains. */}}
{{- define "postern.bundleEndpoint" -}}
{{- with .Values.federation.bundleEndpoint -}}
{{- if or .spiffe .webSecretName }}served{{ end -}}
{{- end -}}
{{- end -}}

{{/* The Secret of a brought issuer; empty: the CA makes its own. */}}
{{- define "postern.issuer" -}}
{{- with .Values.ca.broughtIssuer -}}
{{- if .externalSecret.enabled }}postern-ca-issuer{{ else }}{{ .secretName }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. Given a dict of root and, but for what belongs to no one component, component. */}}
{{- define "postern.labels" -}}
{{- if .component -}}
app.kubernetes.io/name: postern-{{ .component }}
app.kubernetes.io/component: {{ .component }}
{{- else -}}
app.kubernetes.io/name: postern
{{- end }}
app.kubernetes.io/part-of: postern
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* What selects a component's pods: immutable in a Deployment, so the same in every version. */}}
{{- define "postern.selector" -}}
app.kubernetes.io/name: postern-{{ .component }}
app.kubernetes.io/part-of: postern
{{- end -}}

{{/* The reference of a component's image. */}}
{{- define "postern.image" -}}
{{- $image := .root.Values.image -}}
{{- printf "%s/postern-%s:%s" $image.registry .component (default .root.Chart.AppVersion $image.tag) -}}
{{- with index $image.digests .component }}@{{ . }}{{ end -}}
{{- end -}}

{{/* Namespaces that no webhook sees, so that a dead injector can never keep the cluster, or itself, from coming up. */}}
{{- define "postern.excluded" -}}
{{- concat (list "postern-system" "kube-system" "kube-public" "kube-node-lease") .Values.injector.webhook.excludedNamespaces | uniq | toJson -}}
{{- end -}}

{{/* The part of a Deployment above its pod's spec. */}}
{{- define "postern.deployment" -}}
{{- $values := index .root.Values .component -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: postern-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "postern.labels" . | nindent 4 }}
spec:
  replicas: {{ $values.replicas }}
  selector:
    matchLabels: {{- include "postern.selector" . | nindent 6 }}
  strategy:
    type: RollingUpdate
    # A new pod is ready before an old one goes.
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  template:
    metadata:
      labels:
        {{- include "postern.labels" . | nindent 8 }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        # Never in the mesh, whatever happens to the namespace's exclusion.
        postern.dev/inject: disabled
      annotations:
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        kubectl.kubernetes.io/default-container: postern-{{ .component }}
        {{- if .root.Values.metrics.annotations }}
        prometheus.io/scrape: "true"
        prometheus.io/port: "15020"
        prometheus.io/path: /metrics
        {{- end }}
{{- end -}}

{{/* The part of a pod's spec that is the same for all components. */}}
{{- define "postern.pod" -}}
{{- $values := index .root.Values .component -}}
serviceAccountName: postern-{{ .component }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
terminationGracePeriodSeconds: 30
securityContext:
  runAsNonRoot: true
  runAsUser: 15371
  runAsGroup: 15371
  fsGroup: 15371
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    # Counted per version, so that a rollout ends as evenly as it began.
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- include "postern.selector" $ | nindent 8 }}
  {{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* The part of a component's container that is the same for all, below its ports. */}}
{{- define "postern.container" -}}
{{- $values := index .root.Values .component -}}
image: {{ include "postern.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
resources: {{- toYaml $values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
# Ready is what the component says it is; alive is that it still answers.
readinessProbe:
  httpGet: {path: /readyz, port: 15020}
  periodSeconds: 2
  timeoutSeconds: 2
livenessProbe:
  httpGet: {path: /livez, port: 15020}
  initialDelaySeconds: 5
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* A component's PodDisruptionBudget. */}}
{{- define "postern.budget" -}}
{{- if .root.Values.podDisruptionBudgets.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: postern-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "postern.labels" . | nindent 4 }}
spec:
  # Never "minAvailable": with one replica that would block every drain of its node.
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "postern.selector" . | nindent 6 }}
{{- end -}}
{{- end -}}

{{/* A component's ServiceAccount. */}}
{{- define "postern.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: postern-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "postern.labels" . | nindent 4 }}
{{- end -}}

{{/* An object that the chart makes empty and a component fills: no `data` and no `spec` here, so that Helm's three-way
merge leaves what is in there at upgrades, and uninstall takes it away. Given root, component, apiVersion, kind, name. */}}
{{- define "postern.filled" -}}
apiVersion: {{ .apiVersion }}
kind: {{ .kind }}
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "postern.labels" . | nindent 4 }}
{{- end -}}

{{/* Binds a component's Role or ClusterRole to its account. Given root, component and kind. */}}
{{- define "postern.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
  name: postern-{{ .component }}
  {{- if eq .kind "Role" }}
  namespace: {{ .root.Release.Namespace }}
  {{- end }}
  labels: {{- include "postern.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: postern-{{ .component }}
subjects:
  - kind: ServiceAccount
    name: postern-{{ .component }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}
