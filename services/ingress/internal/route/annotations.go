package route

import (
	"maps"
	"slices"
)

// Support says what becomes of an annotation.
type Support string

// What becomes of annotations.
const (
	// Supported does what ingress-nginx documents.
	Supported Support = "supported"
	// Approximated differs in what its note says.
	Approximated Support = "approximated"
	// Moot has nothing to do here: what it sets is always so, or does not exist.
	Moot Support = "moot"
	// Ignored has no effect; requests are served without it.
	Ignored Support = "ignored"
	// Closed is not supported and protects something: the Ingress answers 503 until it is removed.
	Closed Support = "refused"
)

// Annotation is one of nginx.ingress.kubernetes.io.
type Annotation struct {
	Name    string
	Support Support
	Note    string
	// harmless is the value that a Closed one may have.
	harmless string
}

// Annotations are those that are known, by name. One that is not among them is ignored.
func Annotations() []Annotation {
	var out []Annotation
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		a := annotations[name]
		a.Name = name
		out = append(out, a)
	}
	return out
}

var annotations = map[string]Annotation{
	"affinity":                                 {Support: Ignored, Note: "no sticky sessions yet; requests go to every endpoint"},
	"affinity-canary-behavior":                 {Support: Ignored, Note: "as affinity"},
	"affinity-mode":                            {Support: Ignored, Note: "as affinity"},
	"allowlist-source-range":                   {Support: Supported, Note: "the newer name of whitelist-source-range"},
	"app-root":                                 {Support: Supported, Note: "302 from /"},
	"auth-cache-duration":                      {Support: Ignored, Note: "only with auth-url"},
	"auth-cache-key":                           {Support: Ignored, Note: "only with auth-url"},
	"auth-keepalive":                           {Support: Ignored, Note: "only with auth-url"},
	"auth-keepalive-requests":                  {Support: Ignored, Note: "only with auth-url"},
	"auth-keepalive-share-vars":                {Support: Ignored, Note: "only with auth-url"},
	"auth-keepalive-timeout":                   {Support: Ignored, Note: "only with auth-url"},
	"auth-proxy-set-headers":                   {Support: Ignored, Note: "only with auth-url"},
	"auth-realm":                               {Support: Ignored, Note: "only with auth-type"},
	"auth-secret":                              {Support: Closed, Note: "no authentication by the ingress"},
	"auth-secret-type":                         {Support: Ignored, Note: "only with auth-type"},
	"auth-snippet":                             {Support: Closed, Note: "no nginx, no nginx configuration"},
	"auth-tls-error-page":                      {Support: Ignored, Note: "only with auth-tls-secret"},
	"auth-tls-match-cn":                        {Support: Closed, Note: "no client certificates"},
	"auth-tls-pass-certificate-to-upstream":    {Support: Ignored, Note: "only with auth-tls-secret"},
	"auth-tls-secret":                          {Support: Closed, Note: "no client certificates"},
	"auth-tls-verify-client":                   {Support: Closed, Note: "no client certificates; off is accepted", harmless: "off"},
	"auth-tls-verify-depth":                    {Support: Ignored, Note: "only with auth-tls-secret"},
	"auth-type":                                {Support: Closed, Note: "no authentication by the ingress"},
	"auth-url":                                 {Support: Closed, Note: "no authentication by another service"},
	"backend-protocol":                         {Support: Approximated, Note: "HTTP, HTTPS, GRPC, GRPCS; FCGI is refused. Certificates of endpoints are not verified, as is ingress-nginx' default"},
	"canary":                                   {Support: Approximated, Note: "no weights: the rules of a canary are not served, the main Ingress gets all requests"},
	"canary-by-cookie":                         {Support: Ignored, Note: "only with canary"},
	"canary-by-header":                         {Support: Ignored, Note: "only with canary"},
	"canary-by-header-pattern":                 {Support: Ignored, Note: "only with canary"},
	"canary-by-header-value":                   {Support: Ignored, Note: "only with canary"},
	"canary-weight":                            {Support: Ignored, Note: "only with canary"},
	"canary-weight-total":                      {Support: Ignored, Note: "only with canary"},
	"client-body-buffer-size":                  {Support: Moot, Note: "bodies are streamed"},
	"configuration-snippet":                    {Support: Closed, Note: "no nginx, no nginx configuration"},
	"connection-proxy-header":                  {Support: Moot, Note: "upgrades pass, other hop-by-hop headers do not"},
	"cors-allow-credentials":                   {Support: Supported},
	"cors-allow-headers":                       {Support: Supported},
	"cors-allow-methods":                       {Support: Supported},
	"cors-allow-origin":                        {Support: Supported},
	"cors-expose-headers":                      {Support: Supported},
	"cors-max-age":                             {Support: Supported},
	"custom-headers":                           {Support: Ignored, Note: "names a ConfigMap, a kind that does not exist here"},
	"custom-http-errors":                       {Support: Ignored, Note: "the endpoint's errors pass as they are"},
	"default-backend":                          {Support: Ignored, Note: "a Service without endpoints is 503; use spec.defaultBackend for unknown paths"},
	"denylist-source-range":                    {Support: Supported},
	"enable-access-log":                        {Support: Moot, Note: "nothing is logged per request"},
	"enable-cors":                              {Support: Supported},
	"enable-global-auth":                       {Support: Moot, Note: "there is no global authentication"},
	"enable-modsecurity":                       {Support: Closed, Note: "no web application firewall; false is accepted", harmless: "false"},
	"enable-opentelemetry":                     {Support: Ignored, Note: "requests are not traced; traceparent passes through"},
	"enable-owasp-core-rules":                  {Support: Closed, Note: "no web application firewall; false is accepted", harmless: "false"},
	"enable-rewrite-log":                       {Support: Moot, Note: "RouteService.Match shows a rewrite"},
	"force-ssl-redirect":                       {Support: Supported, Note: "308"},
	"from-to-www-redirect":                     {Support: Ignored, Note: "add a rule for the other host with permanent-redirect"},
	"http2-push-preload":                       {Support: Moot, Note: "browsers have removed push"},
	"limit-connections":                        {Support: Ignored, Note: "no limits per Ingress; see the server's own"},
	"limit-rps":                                {Support: Ignored, Note: "no limits per Ingress; see the server's own"},
	"load-balance":                             {Support: Ignored, Note: "the endpoint with fewer requests of two"},
	"mirror-host":                              {Support: Ignored, Note: "only with mirror-target"},
	"mirror-request-body":                      {Support: Ignored, Note: "only with mirror-target"},
	"mirror-target":                            {Support: Ignored, Note: "requests are not copied"},
	"modsecurity-snippet":                      {Support: Closed, Note: "no web application firewall"},
	"modsecurity-transaction-id":               {Support: Ignored, Note: "only with enable-modsecurity"},
	"opentelemetry-trust-incoming-span":        {Support: Moot, Note: "traceparent passes through"},
	"permanent-redirect":                       {Support: Supported, Note: "301, without the request's path"},
	"permanent-redirect-code":                  {Support: Supported, Note: "300 to 308"},
	"preserve-trailing-slash":                  {Support: Moot, Note: "a trailing slash stays"},
	"proxy-body-size":                          {Support: Supported, Note: "413; without it the server's own limit, not ingress-nginx' 1m"},
	"proxy-buffer-size":                        {Support: Moot, Note: "responses are streamed"},
	"proxy-buffering":                          {Support: Moot, Note: "responses are streamed"},
	"proxy-buffers-number":                     {Support: Moot, Note: "responses are streamed"},
	"proxy-busy-buffers-size":                  {Support: Moot, Note: "responses are streamed"},
	"proxy-connect-timeout":                    {Support: Ignored, Note: "the server's own, 2 s: another endpoint is tried"},
	"proxy-cookie-domain":                      {Support: Ignored, Note: "cookies pass as they are"},
	"proxy-cookie-path":                        {Support: Ignored, Note: "cookies pass as they are"},
	"proxy-http-version":                       {Support: Moot, Note: "always 1.1, or 2 by backend-protocol"},
	"proxy-max-temp-file-size":                 {Support: Moot, Note: "nothing is put into files"},
	"proxy-next-upstream":                      {Support: Ignored, Note: "always as `error timeout`: never once a request that may not be repeated was sent"},
	"proxy-next-upstream-timeout":              {Support: Ignored, Note: "bounded by the tries"},
	"proxy-next-upstream-tries":                {Support: Ignored, Note: "always 3, as is ingress-nginx' default"},
	"proxy-read-timeout":                       {Support: Approximated, Note: "bounds the time to the response's header, not the pauses within its body"},
	"proxy-redirect-from":                      {Support: Ignored, Note: "Location passes as it is, as is ingress-nginx' default"},
	"proxy-redirect-to":                        {Support: Ignored, Note: "as proxy-redirect-from"},
	"proxy-request-buffering":                  {Support: Moot, Note: "requests are streamed"},
	"proxy-send-timeout":                       {Support: Ignored, Note: "the server's own"},
	"proxy-ssl-ciphers":                        {Support: Ignored, Note: "Go's defaults"},
	"proxy-ssl-name":                           {Support: Ignored, Note: "endpoints' certificates are not verified"},
	"proxy-ssl-protocols":                      {Support: Ignored, Note: "TLS 1.2 and later"},
	"proxy-ssl-secret":                         {Support: Ignored, Note: "no client certificate is shown to endpoints"},
	"proxy-ssl-server-name":                    {Support: Ignored, Note: "no server name is sent"},
	"proxy-ssl-verify":                         {Support: Closed, Note: "endpoints' certificates are not verified; off is accepted", harmless: "off"},
	"proxy-ssl-verify-depth":                   {Support: Ignored, Note: "only with proxy-ssl-verify"},
	"rewrite-target":                           {Support: Approximated, Note: "see above: Prefix stays element by element, and regular expressions are RE2"},
	"satisfy":                                  {Support: Closed, Note: "no authentication by the ingress"},
	"server-alias":                             {Support: Ignored, Note: "add a rule for the other host"},
	"server-snippet":                           {Support: Closed, Note: "no nginx, no nginx configuration"},
	"service-upstream":                         {Support: Moot, Note: "requests always go straight to endpoints, which follow every change"},
	"session-cookie-change-on-failure":         {Support: Ignored, Note: "as affinity"},
	"session-cookie-conditional-samesite-none": {Support: Ignored, Note: "as affinity"},
	"session-cookie-domain":                    {Support: Ignored, Note: "as affinity"},
	"session-cookie-expires":                   {Support: Ignored, Note: "as affinity"},
	"session-cookie-max-age":                   {Support: Ignored, Note: "as affinity"},
	"session-cookie-name":                      {Support: Ignored, Note: "as affinity"},
	"session-cookie-path":                      {Support: Ignored, Note: "as affinity"},
	"session-cookie-samesite":                  {Support: Ignored, Note: "as affinity"},
	"session-cookie-secure":                    {Support: Ignored, Note: "as affinity"},
	"ssl-ciphers":                              {Support: Ignored, Note: "Go's defaults"},
	"ssl-passthrough":                          {Support: Closed, Note: "TLS ends here; false is accepted", harmless: "false"},
	"ssl-prefer-server-ciphers":                {Support: Ignored, Note: "Go's defaults"},
	"ssl-redirect":                             {Support: Supported, Note: "308 where the host has TLS, unless false"},
	"stream-snippet":                           {Support: Closed, Note: "no nginx, no nginx configuration"},
	"temporal-redirect":                        {Support: Supported, Note: "302, without the request's path"},
	"temporal-redirect-code":                   {Support: Supported, Note: "300 to 308"},
	"upstream-hash-by":                         {Support: Ignored, Note: "requests go to every endpoint"},
	"upstream-vhost":                           {Support: Supported},
	"use-regex":                                {Support: Approximated, Note: "RE2, for paths that have its characters, in this Ingress only"},
	"whitelist-source-range":                   {Support: Supported, Note: "403; see client addresses above"},
	"x-forwarded-prefix":                       {Support: Supported},
}
