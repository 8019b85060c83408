# Built by scripts/images from a directory with these files and nothing else. An agent is root: it programs the kernel.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY nodeagent /usr/bin/nodeagent
ENTRYPOINT ["/usr/bin/nodeagent"]
